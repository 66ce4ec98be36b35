package source

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// contact knows whether the watch of one kind works. It hears what client-go tells its
// WatchErrorHandler, and listens at each watch request itself, since a watch that succeeds is not told
// there, nor one that client-go retries by itself, such as at a connection refused. A server that vanishes without closing its connections is noticed within 45 s,
// by the HTTP/2 pings of client-go.
type contact struct {
	kind string
	log  logrus.FieldLogger

	mu sync.Mutex
	// last is when a request last succeeded, zero for never.
	last time.Time
	// since is when the first failure after last was seen; err is the latest. nil: the watch works.
	since time.Time
	err   error
	// told says that the log knows of err.
	told bool
}

func newContact(kind string, log logrus.FieldLogger) *contact {
	return &contact{kind: kind, log: log, since: time.Now(), err: errors.New("it has not started yet")}
}

// attend returns lw with this contact listening.
func (c *contact) attend(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		// A list that succeeds proves little, the watch is what keeps us up to date; and one that fails
		// gets to the WatchErrorHandler.
		ListWithContextFunc: lw.ListWithContextFunc,
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchWithContext(ctx, options)
			if err != nil {
				c.broken(ctx, err)
				return nil, err
			}
			c.works()
			return w, nil
		},
	}
}

// works notes that a watch was established.
func (c *contact) works() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		c.log.WithField("kind", c.kind).Info("Watching the Kubernetes API")
	}
	c.last, c.err, c.told = time.Now(), nil, false
}

// broken notes that a request failed or that a watch broke off. A version that has expired is none
// of these: client-go lists anew. Nor is our own end.
func (c *contact) broken(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.since = time.Now()
	}
	c.err = err
	if !c.told {
		c.told = true
		c.log.WithField("kind", c.kind).WithError(err).Warn("No contact with the Kubernetes API; what is known stays in force")
	}
}

// ended notes that nobody watches any more.
func (c *contact) ended() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since, c.err = time.Now(), errors.New("it was stopped")
}

func (c *contact) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return nil
	}
	last := "never"
	if !c.last.IsZero() {
		last = c.last.UTC().Format(time.RFC3339)
	}
	return fmt.Errorf("watch of %s in the Kubernetes API is dead since %s (last established: %s): %w",
		c.kind, c.since.UTC().Format(time.RFC3339), last, c.err)
}
