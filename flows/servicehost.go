package flows

import (
	"cmp"
	"net/netip"
	"slices"
)

// NodePort is one node port of a family.
type NodePort struct {
	IPv4     bool
	Protocol string
	Port     uint16
}

// key is "tcp 30080 IPv4".
func (n NodePort) key() string {
	family := "IPv6"
	if n.IPv4 {
		family = "IPv4"
	}
	return n.Protocol + " " + decimalPort(n.Port) + " " + family
}

func (n NodePort) compare(o NodePort) int {
	if n.IPv4 != o.IPv4 {
		if n.IPv4 {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(n.Protocol, o.Protocol), cmp.Compare(n.Port, o.Port))
}

// ServiceHost is what a host has to know of Services to bring its packets for them to the bridge.
type ServiceHost struct {
	nodePorts *Shards[NodePort]
	unserved  *Shards[Frontend]
	// external are the addresses of load balancers and the external ones.
	external *Shards[netip.Addr]
	// externals are what is served at those.
	externals *Shards[Frontend]
	// around are the smallest ranges that hold all ClusterIPs that are in none of cidrs, one for each block (see blockOf).
	around *Shards[netip.Prefix]
	// translated says of each family that the address for node ports is served.
	translated bool
}

// NodePorts are all node ports, sorted.
func (h *ServiceHost) NodePorts() []NodePort {
	return sortedValues(h.nodePorts, NodePort.compare)
}

// Unserved are the IPv4 addresses and ports of Services, other than those of TCP, at which nobody takes connections
// at all. Sorted.
func (h *ServiceHost) Unserved() []Frontend {
	return sortedValues(h.unserved, Frontend.compare)
}

func sortedValues[V any](s *Shards[V], compare func(a, b V) int) []V {
	var out []V
	for _, v := range s.All() {
		out = append(out, v)
	}
	slices.SortFunc(out, compare)
	return out
}

// HostRoutes are the ranges and addresses that a host reaches through its bridge: the ranges of ClusterIPs and, of
// those that are in none, the smallest range of each block; each address of load balancers and each external one; the
// one for node ports. Sorted.
func (s *Services) HostRoutes() []netip.Prefix {
	out := slices.Clone(s.CIDRs)
	for _, r := range s.Host.around.All() {
		out = append(out, r)
	}
	for _, a := range s.Host.external.All() {
		out = append(out, host(a))
	}
	if s.Host.translated {
		out = append(out, host(NodePortAddress(true)), host(NodePortAddress(false)))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// nodePorts are those of one port.
func (p *ServicePort) nodePorts() (out []NodePort) {
	for _, v4 := range []bool{true, false} {
		if p.NodePort != 0 && slices.ContainsFunc(p.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == v4 }) {
			out = append(out, NodePort{v4, p.Protocol, p.NodePort})
		}
	}
	return out
}

// unserved are where nobody takes connections to a port, see ServiceHost.
func (p *ServicePort) unserved() (out []Frontend) {
	if p.Protocol == "tcp" || slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Address.Is4() && (e.Ready || e.Serving && e.Terminating) }) {
		return nil
	}
	for _, f := range p.frontends(true) {
		out = append(out, Frontend{p.Protocol, netip.AddrPortFrom(f.address, f.port)})
	}
	return out
}

// blockOf is the /16 or, of IPv6, the /64 that an address is in. No range goes beyond one: a cluster may have several
// ranges of ClusterIPs (KEP-1880), and what holds 10.96.0.0/16 and 172.30.0.0/16 is all of IPv4.
func blockOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 16
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// spans are the smallest ranges of each block.
type spans struct {
	of      map[netip.Prefix]*span
	touched map[netip.Prefix]bool // since the last time that they were published
}

func (s spans) add(a netip.Addr, by int) {
	block := blockOf(a)
	if s.of[block] == nil {
		s.of[block] = &span{}
	}
	s.of[block].add(a, by)
	s.touched[block] = true
}

// publish brings what was published last in step: the same pointer if nothing has changed.
func (s spans) publish(was *Shards[netip.Prefix]) *Shards[netip.Prefix] {
	put, gone := map[string]netip.Prefix{}, []string(nil)
	for block := range s.touched {
		key, now := block.String(), s.of[block]
		before, there := was.Get(key)
		switch {
		case now.n == 0:
			delete(s.of, block)
			if there {
				gone = append(gone, key)
			}
		case now.prefix() != before:
			put[key] = now.prefix()
		}
	}
	clear(s.touched)
	return was.With(put, gone)
}

// span is the smallest range that holds addresses of one family: it counts, of each bit, in how many it is set.
type span struct {
	n    int
	bits int
	ones [128]int
}

func (s *span) add(a netip.Addr, by int) {
	s.n += by
	s.bits = a.BitLen()
	for i, b := range a.AsSlice() {
		for bit := range 8 {
			if b&(0x80>>bit) != 0 {
				s.ones[8*i+bit] += by
			}
		}
	}
}

// prefix is not valid where there is no address.
func (s *span) prefix() netip.Prefix {
	if s.n == 0 {
		return netip.Prefix{}
	}
	common := make([]byte, s.bits/8)
	for i := range s.bits {
		switch s.ones[i] {
		case 0:
		case s.n:
			common[i/8] |= 0x80 >> (i % 8)
		default:
			a, _ := netip.AddrFromSlice(common)
			return netip.PrefixFrom(a, i)
		}
	}
	a, _ := netip.AddrFromSlice(common)
	return host(a)
}
