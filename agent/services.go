package agent

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// services keeps what the objects say about Services. Only those are made anew that objects say something else of.
type services struct {
	on     bool
	source source.Source

	mu     sync.Mutex
	joiner *source.Joiner
	// lingering outlives the Services that its addresses were endpoints of.
	lingering *lingering
	last      *flows.Services
}

func newServices(on bool, s source.Source, cidrs []netip.Prefix) *services {
	return &services{on: on, source: s, joiner: source.NewJoiner(cidrs), lingering: newLingering()}
}

// now returns them; nil where another proxy cares for them.
func (s *services) now() *flows.Services {
	if !s.on {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.join()
}

func (s *services) join() *flows.Services {
	before := s.last
	if s.last = s.joiner.Join(s.source.Services()); s.last != before {
		s.lingering.left(before, s.last)
	}
	return s.last
}

// healthChecked are those of now at whose healthCheckNodePort somebody may ask.
func (s *services) healthChecked() ([]*source.ServiceObject, *flows.Services) {
	if !s.on {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.join()
	return s.joiner.HealthChecked(), now
}

// ownAddresses are those of all nodes, sorted.
func ownAddresses(n nodeView) []netip.Addr {
	out := slices.Clone(n.self.Addresses)
	for _, peer := range n.peers {
		out = append(out, peer.Addresses...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// serviceRoutes are the addresses of Services that the host reaches through the bridge: ClusterIPs by their
// range, the others one by one. One that is a node's own stays the node's.
func serviceRoutes(s *flows.Services, a ask) []netip.Prefix {
	families := map[bool]bool{} // those that this node has addresses of, "is IPv4"
	for _, c := range a.self.PodCIDRs {
		families[c.Addr().Is4()] = true
	}
	routes := s.HostRoutes()
	for _, x := range s.Own(a.local) {
		routes = append(routes, flows.OwnRange(x.Is4()))
	}
	slices.SortFunc(routes, netip.Prefix.Compare)
	return slices.DeleteFunc(slices.Compact(routes), func(r netip.Prefix) bool {
		_, taken := slices.BinarySearchFunc(a.own, r.Addr(), netip.Addr.Compare)
		return !families[r.Addr().Is4()] || r.IsSingleIP() && taken
	})
}

// servedHere says which addresses that came to the host or left it are those of Services. It is called with the lock held.
func (p *plumbing) servedHere(local []netip.Addr) (said []string) {
	s := p.services()
	if s == nil {
		return nil
	}
	was, is := s.Own(p.local), s.Own(local)
	standIns := flows.StandIns(is)
	for _, a := range is {
		switch _, served := standIns[a]; {
		case slices.Contains(was, a):
		case served:
			said = append(said, fmt.Sprintf("%s, at which a Service is served, is an address of this host", a))
		default:
			said = append(said, fmt.Sprintf("%s is an address of this host, which has more than %d such addresses of Services: nobody is served there but pods", a, flows.MostOwn))
		}
	}
	for _, a := range was {
		if !slices.Contains(is, a) {
			said = append(said, fmt.Sprintf("%s, at which a Service is served, is no address of this host any more", a))
		}
	}
	return said
}

// nftServices is what the host's nftables do for Services.
func (p *plumbing) nftServices(s *flows.Services, a ask) *host.NFTServices {
	out := &host.NFTServices{RejectMAC: net.HardwareAddr(flows.RejectMAC()), NodePortAddresses: p.set.nodePortAddresses}
	for _, c := range a.self.PodCIDRs {
		out.To = append(out.To, flows.NodePortAddress(c.Addr().Is4()))
	}
	for _, o := range s.OwnFrontends(a.local) {
		out.Own = append(out.Own, host.OwnService{Protocol: o.Protocol, At: o.At, To: o.StandIn})
	}
	for _, port := range s.Host.NodePorts() {
		out.NodePorts = append(out.NodePorts, host.NodePort{IPv4: port.IPv4, Protocol: port.Protocol, Port: port.Port})
	}
	for _, u := range s.Host.Unserved() {
		out.Unserved = append(out.Unserved, host.Unserved{Protocol: u.Protocol, At: u.At})
	}
	return out
}

// useless lists the Services that nobody serves at present, in a sentence each.
func useless(s *flows.Services) []string {
	var out []string
	if s == nil {
		return nil
	}
	for o, p := range s.Ports.All() {
		if p.Useless() {
			out = append(out, fmt.Sprintf("%s has no endpoint that is ready: clients are rejected at once", o))
		}
	}
	slices.Sort(out)
	return out
}
