package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// Frontend is an address and port at which a protocol (tcp, udp, sctp) is served.
type Frontend struct {
	Protocol string
	At       netip.AddrPort
}

// Connection is one that the zone of Services tracks.
type Connection struct {
	// Frontend is where its client sends. Endpoint is where answers come from: the same for one that goes straight
	// to an endpoint.
	Frontend Frontend
	Endpoint netip.AddrPort
	// Moved is true for one that goes straight to an endpoint by another source port than its client's own.
	Moved bool
}

// Connections answers what becomes of tracked connections in one World. The answer depends on the World and on what is
// tracked, not on what has happened: it is the same after a restart.
type Connections struct {
	endpoints map[netip.Addr]bool
	ports     map[Frontend][]*ServicePort
}

// NewConnections reads a World.
func NewConnections(w *World) *Connections {
	c := &Connections{ports: map[Frontend][]*ServicePort{}}
	if w.Services == nil {
		return c
	}
	c.endpoints = w.Services.Endpoints
	for _, p := range w.Services.Ports {
		for _, v4 := range []bool{true, false} {
			for _, f := range p.frontends(v4) {
				at := Frontend{p.Protocol, netip.AddrPortFrom(f.address, f.port)}
				c.ports[at] = append(c.ports[at], p)
			}
		}
	}
	return c
}

// Ended is true for a connection that has to be forgotten: its Service is gone, or its endpoint is. UDP and SCTP leave
// an endpoint as soon as it does not serve any more, because such connections never end by themselves. TCP goes
// on while the endpoint lives, whether it is still an endpoint of the Service or not; alive says so of an
// address.
func (c *Connections) Ended(x Connection, alive func(netip.Addr) bool) bool {
	if x.Frontend.At == x.Endpoint {
		return false
	}
	ports := c.ports[x.Frontend]
	if slices.ContainsFunc(ports, func(p *ServicePort) bool { return p.keeps(x.Endpoint) }) {
		return false
	}
	return len(ports) == 0 || x.Frontend.Protocol != "tcp" || !alive(x.Endpoint.Addr())
}

// Lingers is true for a connection whose packets have to be translated though no Service has its endpoint any more.
func (c *Connections) Lingers(x Connection) bool {
	return (x.Frontend.At != x.Endpoint || x.Moved) && !c.endpoints[x.Endpoint.Addr()]
}

// keeps is true when connections to an endpoint may go on because it is one.
func (p *ServicePort) keeps(at netip.AddrPort) bool {
	i := slices.IndexFunc(p.Endpoints, func(x Endpoint) bool { return x.Address == at.Addr() && x.Port == at.Port() })
	return i >= 0 && (p.Protocol == "tcp" || p.Endpoints[i].Ready || p.Endpoints[i].Serving)
}

// Unserved are the IPv4 addresses and ports of Services, other than those of TCP, at which nobody takes connections
// at all.
func (s *Services) Unserved() (out []Frontend) {
	for _, p := range s.Ports {
		if p.Protocol == "tcp" || slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Address.Is4() && (e.Ready || e.Serving && e.Terminating) }) {
			continue
		}
		for _, f := range p.frontends(true) {
			out = append(out, Frontend{p.Protocol, netip.AddrPortFrom(f.address, f.port)})
		}
	}
	slices.SortFunc(out, func(a, b Frontend) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}

// InPodCIDR is true for an address that only a pod, or a node inside the pod network, can have.
func (w *World) InPodCIDR(a netip.Addr) bool {
	within := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(c netip.Prefix) bool { return c.Contains(a) })
	}
	if within(w.ClusterCIDRs) || within(w.Node.PodCIDRs) {
		return true
	}
	for _, n := range w.Peers {
		if within(n.PodCIDRs) {
			return true
		}
	}
	return false
}
