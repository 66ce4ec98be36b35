package source

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// eventSink sends what the recorder of client-go made of our Events.
type eventSink struct {
	ctx    context.Context
	client rest.Interface
}

// Create implements record.EventSink.
func (s *eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	into := &corev1.Event{}
	return into, s.client.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(s.ctx).Into(into)
}

// Update implements record.EventSink.
func (s *eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	into := &corev1.Event{}
	return into, s.client.Put().Namespace(e.Namespace).Resource("events").Name(e.Name).Body(e).Do(s.ctx).Into(into)
}

// Patch implements record.EventSink.
func (s *eventSink) Patch(e *corev1.Event, data []byte) (*corev1.Event, error) {
	into := &corev1.Event{}
	return into, s.client.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).
		Body(data).Do(s.ctx).Into(into)
}

// reference is how an Event names its object. `kubectl describe node` looks for Events whose UID is
// the name of the Node, as kubelets write it.
func reference(about Ref) corev1.ObjectReference {
	ref := corev1.ObjectReference{Kind: about.Kind, Namespace: about.Namespace, Name: about.Name, UID: types.UID(about.UID)}
	for _, k := range kinds() {
		if k.Kind == about.Kind {
			ref.APIVersion = k.GroupVersion().String()
		}
	}
	if about.Kind == "Node" {
		ref.UID = types.UID(about.Name)
	}
	return ref
}

// Event is one that was recorded where there is no API server to keep it.
type Event struct {
	Time                  time.Time
	About                 Ref
	Type, Reason, Message string
}

// eventRing keeps the latest Events.
type eventRing struct {
	mu   sync.Mutex
	list []Event
}

// ringSize is how many Events a ring keeps: enough for the last minutes of trouble.
const ringSize = 256

func (r *eventRing) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == ringSize {
		r.list = append(r.list[:0], r.list[1:]...)
	}
	r.list = append(r.list, e)
}

// Events returns the latest, eldest first.
func (r *eventRing) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.list...)
}

// logEvent writes an Event as a log line.
func logEvent(log logrus.FieldLogger, e Event) {
	line := log.WithFields(logrus.Fields{"object": e.About.String(), "reason": e.Reason})
	if e.Type == EventWarning {
		line.Warn(e.Message)
	} else {
		line.Info(e.Message)
	}
}
