package attach

import (
	"crypto/sha256"
	"math/big"
	"net"
	"net/netip"

	"github.com/twill-net/twill/flows"
)

// nextFree returns the first address of cidr after last that is not taken, going round once. ok is false
// when there is none.
func nextFree(cidr netip.Prefix, last netip.Addr, taken map[netip.Addr]bool) (free netip.Addr, ok bool) {
	first := gatewayOf(cidr).Next()
	if !assignable(cidr, first) {
		return netip.Addr{}, false
	}
	a := first
	if last.IsValid() && assignable(cidr, last.Next()) {
		a = last.Next()
	}
	for range len(taken) + 1 { // one of so many different addresses is free, if there are so many
		if !taken[a] {
			return a, true
		}
		if a = a.Next(); !assignable(cidr, a) {
			a = first
		}
	}
	return netip.Addr{}, false
}

// assignable is true for an address of cidr that a pod may have. The network's own address, the gateway
// (the one after it) and, with IPv4, the broadcast address are never given out.
func assignable(cidr netip.Prefix, a netip.Addr) bool {
	if !cidr.Contains(a) || a.Compare(gatewayOf(cidr)) <= 0 {
		return false
	}
	return a.Is6() || cidr.Contains(a.Next())
}

// gatewayOf is the router of the pods of a podCIDR. It lies outside of a range of one address.
func gatewayOf(cidr netip.Prefix) netip.Addr { return flows.Gateway(cidr) }

// capacity is how many addresses of a range pods can have, at most the largest int.
func capacity(cidr netip.Prefix) int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(cidr.Addr().BitLen()-cidr.Bits()))
	n.Sub(n, big.NewInt(2)) // the network's own address and the gateway
	if cidr.Addr().Is4() {
		n.Sub(n, big.NewInt(1)) // broadcast
	}
	switch {
	case n.Sign() < 0:
		return 0
	case !n.IsInt64():
		return int(^uint(0) >> 1)
	}
	return int(n.Int64())
}

// macOf derives the interface's address: locally administered (IEEE 802 c), ending in the IPv4 address
// where there is one, so that a capture can be read.
func macOf(addresses []netip.Addr) net.HardwareAddr {
	for _, a := range addresses {
		if a.Is4() {
			b := a.As4()
			return net.HardwareAddr{0x0a, 0x77, b[0], b[1], b[2], b[3]}
		}
	}
	mac := net.HardwareAddr{0x0a, 0x76, 0, 0, 0, 0}
	if len(addresses) > 0 {
		sum := sha256.Sum256(addresses[0].AsSlice())
		copy(mac[2:], sum[:4])
	}
	return mac
}
