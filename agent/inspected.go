package agent

import (
	"context"
	"errors"
	"time"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/agent/preview"
	"github.com/twill-net/twill/flows"
)

// LiveFlow is one flow of the live table with the object behind it.
type LiveFlow = inspect.Flow

// subject is this node as the operator's tools look at it.
func (a *Agent) subject() *inspect.Subject {
	drops := &glance{now: time.Now, read: func(ctx context.Context) (string, error) {
		d, err := a.daemon.current()
		if err != nil {
			return "", err
		}
		return d.Call(ctx, "dpctl/dump-flows", "-m", a.plumbing.datapath()+"@ovs-"+a.plumbing.datapath())
	}}
	return &inspect.Subject{
		Node: a.cfg.NodeName, Bridge: a.cfg.Bridge,
		View: func(read func(*flows.Desired, *flows.World)) {
			a.loop.view(func(d *flows.Desired, w *flows.World, _ Applied) { read(d, w) })
		},
		Installed: a.loop.bridge.Flows,
		Groups:    a.loop.bridge.Groups,
		Tracer: func(context.Context) (inspect.Tracer, error) {
			d, err := a.daemon.current()
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		Megaflows: drops.megaflows,
		Datapath:  a.plumbing.datapath,
		Behind:    func() error { return errors.Join(a.loop.ready(), a.source.Alive()) },
	}
}

// errNotSynced is for who asks for objects before they are all there.
var errNotSynced = errors.New("the first list of Kubernetes objects has not been read yet")

// objects are what verdicts of policies depend on, in the whole cluster.
func (a *Agent) objects() (preview.Objects, error) {
	if !a.source.Synced() {
		return preview.Objects{}, errNotSynced
	}
	return preview.ObjectsOf(a.source), nil
}
