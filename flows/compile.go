package flows

import (
	"fmt"
	"net/netip"
	"strings"
)

// builder collects the flows of one owner.
type builder struct {
	owner Owner
	flows []Flow
}

func (b *builder) add(t Table, priority uint16, m Match, actions ...Action) {
	b.flows = append(b.flows, Flow{Table: t, Priority: priority, Match: m, Actions: actions, Owner: b.owner}.named())
}

// through adds a flow whose group action leads to g.
func (b *builder) through(t Table, priority uint16, m Match, g *Group, actions ...Action) {
	actions = append(actions, Action{"group", fmt.Sprint(g.ID)})
	b.flows = append(b.flows, Flow{Table: t, Priority: priority, Match: m, Actions: actions, Owner: b.owner, Group: g}.named())
}

func (b *builder) drop(t Table, priority uint16, m Match, why Reason) {
	b.flows = append(b.flows, Flow{Table: t, Priority: priority, Match: m, Owner: b.owner, Drop: why}.named())
}

// Owners lists every owner that the World has flows for.
func (w *World) Owners() []Owner {
	out := []Owner{Pipeline, NodeOwner(w.Node.Name)}
	for name := range w.Peers {
		out = append(out, NodeOwner(name))
	}
	for o := range w.Pods {
		out = append(out, o)
	}
	if s := w.Services; s != nil {
		out = append(out, AffinityOwner)
		for o := range s.Ports.All() {
			out = append(out, Owner(o))
		}
		for _, a := range s.addresses.All() {
			out = append(out, AddressOwner(a))
		}
		for a := range w.translated() {
			out = append(out, endpointOwner(a))
		}
	}
	return append(out, w.Policy.owners()...)
}

// Compile returns the flows of one owner. Nothing in the World for that owner means no flows and no
// error. The cost does not depend on the other owners.
func Compile(w *World, o Owner) ([]Flow, error) {
	kind, name, _ := strings.Cut(string(o), "/")
	switch kind {
	case string(Pipeline):
		return pipelineFlows(w), nil
	case "node":
		if name == w.Node.Name {
			return selfFlows(w), nil
		}
		peer, ok := w.Peers[name]
		if !ok {
			return nil, nil
		}
		return peerFlows(w, peer)
	case "pod":
		var out []Flow
		for _, a := range w.Pods[o] {
			out = append(out, podFlows(w, a)...)
		}
		return out, nil
	case string(AffinityOwner):
		return affinityFlows(w), nil
	case "service":
		if w.Services == nil || w.Services.Port(o) == nil {
			return nil, nil
		}
		return servicePortFlows(w, w.Services.Port(o)), nil
	case "service-address":
		if a, err := netip.ParseAddr(name); err == nil && w.Services != nil && w.Services.Serves(a) {
			return serviceAddressFlows(w, a), nil
		}
		return nil, nil
	case "endpoint-address":
		if a, err := netip.ParseAddr(name); err == nil && w.translates(a) {
			return endpointAddressFlows(a), nil
		}
		return nil, nil
	case "networkpolicy", "clusternetworkpolicy", "clause", "peer":
		return compilePolicy(w, o, kind, name), nil
	}
	return nil, fmt.Errorf("owner %q: unknown kind %q", o, kind)
}
