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

// String is "tcp 198.19.0.10:80".
func (f Frontend) String() string { return f.Protocol + " " + f.At.String() }

func (f Frontend) compare(o Frontend) int {
	return cmp.Or(f.At.Compare(o.At), cmp.Compare(f.Protocol, o.Protocol))
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
	services *Services
	// own are the addresses of the host by their stand-ins.
	own map[netip.Addr]netip.Addr
}

// NewConnections reads a World.
func NewConnections(w *World) *Connections {
	c := &Connections{services: w.Services, own: map[netip.Addr]netip.Addr{}}
	if w.Services == nil {
		c.services = NewServices(nil, nil)
	}
	for a, s := range StandIns(w.Own) {
		c.own[s] = a
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
	at := x.Frontend
	if a, ok := c.own[at.At.Addr()]; ok {
		at.At = netip.AddrPortFrom(a, at.At.Port())
	}
	ports := c.services.At(at)
	if slices.ContainsFunc(ports, func(p *ServicePort) bool { return p.keeps(x.Endpoint) }) {
		return false
	}
	return len(ports) == 0 || x.Frontend.Protocol != "tcp" || !alive(x.Endpoint.Addr())
}

// Lingers is true for a connection whose packets have to be translated though no Service has its endpoint any more.
func (c *Connections) Lingers(x Connection) bool {
	return (x.Frontend.At != x.Endpoint || x.Moved) && !c.services.Leads(x.Endpoint.Addr())
}

// keeps is true when connections to an endpoint may go on because it is one.
func (p *ServicePort) keeps(at netip.AddrPort) bool {
	i := slices.IndexFunc(p.Endpoints, func(x Endpoint) bool { return x.Address == at.Addr() && x.Port == at.Port() })
	return i >= 0 && (p.Protocol == "tcp" || p.Endpoints[i].Ready || p.Endpoints[i].Serving)
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
