package lab

import (
	"net/netip"
)

// The lab's address plan. All of it is documentation or benchmarking space (RFC 5737, RFC 2544,
// RFC 3849), and all of it lives inside namespaces, so every lab uses the same.
const (
	maxNodes = 200 // node-200 is 198.51.100.200, below the outside host's .254

	underlayBits4, underlayBits6 = 24, 64
	clusterCIDR4, clusterCIDR6   = "198.18.0.0/16", "2001:db8:42::/48"
)

// underlay4 and underlay6 are the addresses of a host on the network that joins the nodes.
func underlay4(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, host})
}

func underlay6(host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01, 0x00, 15: host})
}

const outsideHost = 254

// Outside4 and Outside6 are addresses of a host that is no node and has no route to any pod: it can
// answer a pod only when the node masqueraded it.
func Outside4() netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, 10}) }
func Outside6() netip.Addr { return netip.MustParseAddr("2001:db8:113::10") }

// podCIDR4 and podCIDR6 are the ranges of node i: 198.18.i.0/24 and 2001:db8:42:i::/64 (i in hexadecimal).
func podCIDR4(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)
}

func podCIDR6(i int) netip.Prefix {
	a := netip.MustParsePrefix(clusterCIDR6).Addr().As16()
	a[7] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// byFamily picks what the lab's --ip-family asks for; IPv4 first, as in Kubernetes' default dual stack.
func byFamily[T any](c Config, four, six T) []T {
	switch c.IPFamily {
	case "ipv4":
		return []T{four}
	case "ipv6":
		return []T{six}
	}
	return []T{four, six}
}
