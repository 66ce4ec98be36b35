package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// tellEndpoints says once, by an Event at the Service, which of its endpoints are no pods of the pod network. They are used:
// an API server outside of the cluster and pods with hostNetwork are such. But an operator who did not mean it finds it
// there. Of all nodes one speaks: the one that has the address or, for an address outside, the first by name.
func (a *Agent) tellEndpoints(before, now *flows.World) {
	if now.Services == nil || before != nil && before.Services == now.Services {
		return
	}
	var changed []string
	old := &flows.Services{}
	if before != nil && before.Services != nil {
		old = before.Services
	}
	flows.Differences(old.Ports, now.Services.Ports, func(a, b *flows.ServicePort) bool { return a == b }, func(o string) { changed = append(changed, o) })
	slices.Sort(changed)
	for _, key := range changed {
		o := flows.Owner(key)
		p, was := now.Services.Port(o), old.Port(o)
		if p == nil {
			continue
		}
		if said := oddEndpoints(now, p); said != "" && (was == nil || oddEndpoints(before, was) != said) {
			a.source.Event(source.Ref{Key: serviceKey(o)}, source.EventNormal, "TwillUnusualEndpoint", said)
		}
	}
}

// serviceKey names the Service of service/NAMESPACE/NAME:PORT.
func serviceKey(o flows.Owner) source.Key {
	words := strings.SplitN(string(o), "/", 3)
	name, _, _ := strings.Cut(words[len(words)-1], ":")
	return source.Key{Kind: "Service", Namespace: words[1], Name: name}
}

// oddEndpoints describes the endpoints that this node has to tell of, empty for none.
func oddEndpoints(w *flows.World, p *flows.ServicePort) string {
	_, port, _ := strings.Cut(string(p.Owner), ":")
	var said []string
	for _, e := range p.Endpoints {
		at := netip.AddrPortFrom(e.Address, e.Port)
		switch node := nodeWith(w, e.Address); {
		case node == w.Node.Name:
			said = append(said, fmt.Sprintf("port %s: its endpoint %s is the node %s itself, not a pod; it is used, and no NetworkPolicy applies to it", port, at, node))
		case node == "" && !w.InPodCIDR(e.Address) && firstNode(w):
			said = append(said, fmt.Sprintf("port %s: its endpoint %s is in no podCIDR and no node has it; it is used by way of each node, whose address it sees. "+
				"If it should be a pod, correct what made the EndpointSlice", port, at))
		}
	}
	const most = 3
	if n := len(said); n > most {
		said = append(said[:most], fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(said, "; ")
}

// nodeWith is the name of the node that has an address, empty for none.
func nodeWith(w *flows.World, a netip.Addr) string {
	if slices.Contains(w.Node.Addresses, a) {
		return w.Node.Name
	}
	for name, n := range w.Peers {
		if slices.Contains(n.Addresses, a) {
			return name
		}
	}
	return ""
}

// firstNode is true where this node's name is the first of all.
func firstNode(w *flows.World) bool {
	for name := range w.Peers {
		if name < w.Node.Name {
			return false
		}
	}
	return true
}
