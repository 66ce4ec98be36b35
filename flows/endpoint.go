package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// Endpoint is one address behind a Service port, as an EndpointSlice has it.
type Endpoint struct {
	Address netip.Addr
	Port    uint16
	// Node is the name of the node it runs on; empty if not known.
	Node string
	// Ready, Serving and Terminating are the conditions of discovery.k8s.io/v1.
	Ready, Serving, Terminating bool
	// ForZones and ForNodes are the hints for whom it is meant (KEP-2433, KEP-4444).
	ForZones, ForNodes []string
}

// Equal is true when both are the same endpoint in the same state.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.Address == o.Address && e.Port == o.Port && e.Node == o.Node &&
		e.Ready == o.Ready && e.Serving == o.Serving && e.Terminating == o.Terminating &&
		slices.Equal(e.ForZones, o.ForZones) && slices.Equal(e.ForNodes, o.ForNodes)
}

func (e Endpoint) compare(o Endpoint) int {
	return cmp.Or(e.Address.Compare(o.Address), cmp.Compare(e.Port, o.Port))
}

// SortEndpoints sorts by address and port and leaves each once: the one that is ready, if any.
func SortEndpoints(list []Endpoint) []Endpoint {
	rank := func(e Endpoint) int {
		switch {
		case e.Ready:
			return 0
		case e.Serving:
			return 1
		}
		return 2
	}
	slices.SortFunc(list, func(a, b Endpoint) int {
		return cmp.Or(a.compare(b), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Node, b.Node))
	})
	return slices.CompactFunc(list, func(a, b Endpoint) bool { return a.compare(b) == 0 })
}

// Choose returns the endpoints of a family that new connections may go to from a node: all over the cluster, and
// those of the node itself. As kube-proxy does: the ready ones that hints mean for this node; without any ready one, those that
// terminate but still serve (KEP-1669). hints count only if every ready endpoint has one and some are for
// this node or its zone (KEP-2433).
func (p *ServicePort) Choose(node Node, v4 bool) (cluster, local []Endpoint) {
	var ready, leaving []Endpoint
	for _, e := range p.Endpoints {
		switch {
		case e.Address.Is4() != v4:
		case e.Ready:
			ready = append(ready, e)
		case e.Serving && e.Terminating:
			leaving = append(leaving, e)
		}
	}
	here := func(list []Endpoint) []Endpoint {
		return slices.DeleteFunc(slices.Clone(list), func(e Endpoint) bool { return e.Node != node.Name })
	}
	if local = here(ready); len(local) == 0 {
		local = here(leaving)
	}
	if cluster = hinted(ready, node); len(cluster) == 0 {
		cluster = leaving
	}
	return cluster, local
}

// hinted are those meant for a node, or all.
func hinted(ready []Endpoint, node Node) []Endpoint {
	for _, by := range []func(Endpoint) (hints []string, mine string){
		func(e Endpoint) ([]string, string) { return e.ForNodes, node.Name },
		func(e Endpoint) ([]string, string) { return e.ForZones, node.Zone },
	} {
		var mine []Endpoint
		all := true
		for _, e := range ready {
			hints, me := by(e)
			all = all && len(hints) > 0
			if me != "" && slices.Contains(hints, me) {
				mine = append(mine, e)
			}
		}
		if all && len(mine) > 0 {
			return mine
		}
	}
	return ready
}

// Useless is true when no endpoint of any family can take a connection: clients are rejected at once.
func (p *ServicePort) Useless() bool {
	return !slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Ready || e.Serving && e.Terminating })
}
