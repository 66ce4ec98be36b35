package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// StaleConnections selects connections whose translation leads, or led, where nobody shall be led any more.
type StaleConnections struct {
	Protocol string
	// Frontend is the address and port that clients use.
	Frontend netip.AddrPort
	// Endpoint is where they are led; not valid for all of them.
	Endpoint netip.AddrPort
}

// Stale lists what has to be forgotten when Services change: all connections of a frontend that is gone; of an
// endpoint that has left its Service those that went there. UDP (and SCTP) leave an endpoint as soon as it
// does not serve any more: such connections never end by themselves. TCP to one that terminates may finish.
func Stale(before, now *Services) (out []StaleConnections) {
	if before == nil || now == nil || before == now {
		return nil
	}
	for o, was := range before.Ports {
		is := now.Ports[o]
		if was.Equal(is) {
			continue
		}
		for _, v4 := range []bool{true, false} {
			var stay []frontend
			if is != nil {
				stay = is.frontends(v4)
			}
			for _, f := range was.frontends(v4) {
				at := netip.AddrPortFrom(f.address, f.port)
				if !slices.ContainsFunc(stay, func(g frontend) bool { return g.address == f.address && g.port == f.port }) {
					out = append(out, StaleConnections{Protocol: was.Protocol, Frontend: at})
					continue
				}
				for _, e := range was.Endpoints {
					if e.Address.Is4() == v4 && !is.keeps(e) && (e.Ready || e.Serving) {
						out = append(out, StaleConnections{was.Protocol, at, netip.AddrPortFrom(e.Address, e.Port)})
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b StaleConnections) int {
		if c := a.Frontend.Compare(b.Frontend); c != 0 {
			return c
		}
		return a.Endpoint.Compare(b.Endpoint)
	})
	return out
}

// keeps is true when connections to an endpoint may go on.
func (p *ServicePort) keeps(e Endpoint) bool {
	i := slices.IndexFunc(p.Endpoints, func(x Endpoint) bool { return x.Address == e.Address && x.Port == e.Port })
	return i >= 0 && (p.Protocol == "tcp" || p.Endpoints[i].Ready || p.Endpoints[i].Serving)
}

// Unserved are the IPv4 addresses and ports of Services, other than those of TCP, at which nobody takes connections
// at all.
func (s *Services) Unserved() (out []StaleConnections) {
	for _, p := range s.Ports {
		if p.Protocol == "tcp" || slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Address.Is4() && (e.Ready || e.Serving && e.Terminating) }) {
			continue
		}
		for _, f := range p.frontends(true) {
			out = append(out, StaleConnections{Protocol: p.Protocol, Frontend: netip.AddrPortFrom(f.address, f.port)})
		}
	}
	slices.SortFunc(out, func(a, b StaleConnections) int {
		return cmp.Or(a.Frontend.Compare(b.Frontend), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out
}
