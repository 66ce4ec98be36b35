package inspect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Subject is one node as it is looked at.
type Subject struct {
	// Node is its name, Bridge that of its bridge.
	Node, Bridge string
	// View lends what was compiled and from what; a reader keeps nothing of the Desired. The World is nil
	// until the first flows were applied. Why it is called with may be kept.
	View func(read func(*flows.Desired, *flows.World))
	// Installed reads the flows of the bridge back.
	Installed func(context.Context) ([]ovs.Installed, error)
	// Groups reads the groups of the bridge back, as ovs-ofctl prints them.
	Groups func(context.Context) (string, error)
	// Tracer runs ofproto/trace; the error says what is missing for that.
	Tracer func(context.Context) (Tracer, error)
	// Megaflows reads the datapath's flows (dpctl/dump-flows -m); nil where there is no datapath to ask. Datapath is
	// its type: netdev or system.
	Megaflows func(context.Context) (string, error)
	Datapath  func() string
	// dropped are the last packets that were dropped, where a report tells them.
	dropped map[dropKey][]DroppedPacket
	// Behind says why the bridge may not yet hold what is wanted; nil if it is in step.
	Behind func() error
}

// Tracer runs ofproto/trace, see ovs.Daemon.Trace.
type Tracer interface {
	Trace(ctx context.Context, bridge, flow string, more ...string) (string, error)
}

// tracer returns the Tracer, and what to call when it is no longer needed.
func (s *Subject) tracer(ctx context.Context) (Tracer, func(), error) {
	t, err := s.Tracer(ctx)
	if err != nil {
		return nil, nil, err
	}
	done := func() {}
	if c, ok := t.(*simulation); ok {
		done = func() { _ = c.Close() } // its files are in a directory for temporary ones
	}
	return t, done, nil
}

// errNoWorld is the answer while nothing is known.
var errNoWorld = errors.New("this node has compiled no flows yet; `twill status` says what it waits for")

// world returns the World in force.
func (s *Subject) world() (*flows.World, error) {
	var w *flows.World
	s.View(func(_ *flows.Desired, now *flows.World) { w = now })
	if w == nil {
		return nil, errNoWorld
	}
	return w, nil
}

// live reads the table back.
func (s *Subject) live(ctx context.Context) ([]flows.Live, []ovs.Installed, error) {
	installed, err := s.Installed(ctx)
	if err != nil {
		return nil, nil, err
	}
	return ovs.Live(installed), installed, nil
}

// Place is where something that has a name is.
type Place struct {
	Node string `json:"node"`
	// Here is true when that is the node that answers.
	Here      bool         `json:"here"`
	Addresses []netip.Addr `json:"addresses"`
	OFPort    uint32       `json:"ofport,omitempty"`
}

// Locate finds a pod of this node by NAMESPACE/NAME, a Node known here by "node/NAME", or by "service/NAMESPACE/NAME" an
// endpoint of a Service that is ready: who that Service sends from.
func (s *Subject) Locate(name string) (Place, error) {
	w, err := s.world()
	if err != nil {
		return Place{}, err
	}
	if node, ok := strings.CutPrefix(name, "node/"); ok {
		n, known := w.Peers[node]
		if node == w.Node.Name {
			n, known = w.Node, true
		}
		if !known {
			return Place{}, notFound{fmt.Errorf("no Node %q is known on node %s; see `twill status peers`", node, s.Node)}
		}
		return Place{Node: n.Name, Here: node == w.Node.Name, Addresses: append(slices.Clone(n.Addresses), gateways(n)...)}, nil
	}
	if strings.HasPrefix(name, servicePrefix) {
		return s.endpointOf(w, name)
	}
	if a := podNamed(w, name); a != nil {
		return Place{Node: w.Node.Name, Here: true, Addresses: a.Addresses, OFPort: a.OFPort}, nil
	}
	return Place{}, notFound{fmt.Errorf("no pod %s is attached on node %s; see `twill status pods`", name, s.Node)}
}

func (s *Subject) endpointOf(w *flows.World, name string) (Place, error) {
	ports := servicePorts(w, name)
	if len(ports) == 0 {
		return Place{}, notFound{fmt.Errorf("node %s knows no Service %s", s.Node, strings.TrimPrefix(name, servicePrefix))}
	}
	for _, p := range ports {
		for _, e := range p.Endpoints {
			if e.Ready && e.Node != "" {
				return Place{Node: e.Node, Here: e.Node == w.Node.Name, Addresses: []netip.Addr{e.Address}}, nil
			}
		}
	}
	return Place{}, notFound{fmt.Errorf("no endpoint of Service %s is ready on a known node, so nobody sends for it", strings.TrimPrefix(name, servicePrefix))}
}

// notFound is a name that leads to nothing here; elsewhere it may.
type notFound struct{ error }

// badRequest is an error of the asker.
type badRequest struct{ error }

func bad(format string, args ...any) error { return badRequest{fmt.Errorf(format, args...)} }

// podNamed finds the attachment of a pod's first interface.
func podNamed(w *flows.World, name string) *flows.Attachment {
	ns, pod, ok := strings.Cut(strings.TrimPrefix(name, "pod/"), "/")
	if !ok {
		return nil
	}
	list := w.Pods[flows.PodOwner(ns, pod, "eth0")]
	if len(list) == 0 {
		for _, other := range w.Pods {
			if len(other) > 0 && other[0].Namespace == ns && other[0].Pod == pod {
				return &other[0]
			}
		}
		return nil
	}
	return &list[len(list)-1]
}

// podAt finds the attachment that has an address.
func podAt(w *flows.World, addr netip.Addr) *flows.Attachment {
	for _, list := range w.Pods {
		for i := range list {
			for _, a := range list[i].Addresses {
				if a == addr {
					return &list[i]
				}
			}
		}
	}
	return nil
}
