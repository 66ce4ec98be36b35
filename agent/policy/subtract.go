package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Subtract returns the ranges that are left of whole without holes, sorted: at most as many for each hole as the
// hole is longer than whole, so that they are a sum, never a product.
func Subtract(whole netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, h := range holes {
		if h.Bits() <= whole.Bits() && h.Contains(whole.Addr()) {
			return []netip.Prefix{}
		}
		if whole.Contains(h.Addr()) {
			inside = append(inside, h)
		}
	}
	if len(inside) == 0 {
		return []netip.Prefix{whole}
	}
	low, high := halves(whole)
	return append(Subtract(low, inside), Subtract(high, inside)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	low = netip.PrefixFrom(p.Addr(), bits+1)
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	a, _ := netip.AddrFromSlice(b) // of the length of an address
	return low, netip.PrefixFrom(a, bits+1)
}

// CompareRequirements orders the requirements of a selector.
func CompareRequirements(a, b Requirement) int {
	return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Op, b.Op), slices.Compare(a.Values, b.Values))
}
