package agent

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// services keeps what the objects say about Services, made anew only when one has changed.
type services struct {
	on     bool
	source source.Source

	mu     sync.Mutex
	joiner *source.Joiner
	// lingering outlives the Services that its addresses were endpoints of.
	lingering *lingering
	version   uint64
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
	if s.last == nil || s.source.ServiceVersion() != s.version {
		k := s.source.Services()
		before := s.last
		s.last, s.version = s.joiner.Join(k), k.Version
		s.lingering.left(before, s.last)
	}
	return s.last
}

// serviceRoutes are the addresses of Services that the host reaches through the bridge: ClusterIPs by their
// range, the others one by one. One that is a node's own stays the node's.
func (p *plumbing) serviceRoutes(n nodeView) []netip.Prefix {
	s := p.services()
	if s == nil {
		return nil
	}
	taken := map[netip.Addr]bool{}
	for _, node := range append(slices.Collect(maps.Values(n.peers)), n.self) {
		for _, a := range node.Addresses {
			taken[a] = true
		}
	}
	families := map[bool]bool{} // those that this node has addresses of, "is IPv4"
	for _, c := range n.self.PodCIDRs {
		families[c.Addr().Is4()] = true
	}
	out := s.HostRoutes()
	return slices.DeleteFunc(out, func(r netip.Prefix) bool {
		return !families[r.Addr().Is4()] || r.IsSingleIP() && taken[r.Addr()]
	})
}

// hostServices is what the host's nftables do for Services.
func (p *plumbing) hostServices(n nodeView) *host.NFTServices {
	s := p.services()
	if s == nil {
		return nil
	}
	out := &host.NFTServices{RejectMAC: net.HardwareAddr(flows.RejectMAC()), NodePortAddresses: p.set.nodePortAddresses}
	for _, c := range n.self.PodCIDRs {
		out.To = append(out.To, flows.NodePortAddress(c.Addr().Is4()))
	}
	for _, port := range s.NodePorts() {
		out.NodePorts = append(out.NodePorts, host.NodePort{IPv4: port.IPv4, Protocol: port.Protocol, Port: port.Port})
	}
	for _, u := range s.Unserved() {
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
	for o, p := range s.Ports {
		if p.Useless() {
			out = append(out, fmt.Sprintf("%s has no endpoint that is ready: clients are rejected at once", o))
		}
	}
	slices.Sort(out)
	return out
}
