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

// NodePorts are all node ports, sorted.
func (s *Services) NodePorts() []NodePort {
	var out []NodePort
	for _, p := range s.Ports {
		for _, v4 := range []bool{true, false} {
			if p.NodePort != 0 && slices.ContainsFunc(p.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == v4 }) {
				out = append(out, NodePort{v4, p.Protocol, p.NodePort})
			}
		}
	}
	slices.SortFunc(out, func(a, b NodePort) int {
		if a.IPv4 != b.IPv4 {
			if a.IPv4 {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}

// HostRoutes are the ranges and addresses that a host reaches through its bridge: the ranges of ClusterIPs or, of
// a family whose range nobody told, the smallest that holds all of them; each address of load
// balancers and each external one; the one for node ports. Sorted.
func (s *Services) HostRoutes() []netip.Prefix {
	out := slices.Clone(s.CIDRs)
	told := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
	}
	around := map[bool]netip.Prefix{}
	for _, p := range s.Ports {
		for _, a := range p.ClusterIPs {
			if told(a) {
				continue
			}
			r, ok := around[a.Is4()]
			if !ok {
				r = host(a)
			}
			for !r.Contains(a) {
				r = netip.PrefixFrom(r.Addr(), r.Bits()-1).Masked()
			}
			around[a.Is4()] = r
		}
		for _, list := range [][]netip.Addr{p.LoadBalancer, p.External} {
			for _, a := range list {
				out = append(out, host(a))
			}
		}
	}
	for _, r := range around {
		out = append(out, r)
	}
	for _, v4 := range []bool{true, false} {
		if a := NodePortAddress(v4); s.Addresses[a] {
			out = append(out, host(a))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
