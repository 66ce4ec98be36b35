package flows

import (
	"net/netip"
	"slices"
)

// A Service may have an address of a host as external address or load balancer's: that of a node, or one that
// keepalived and the like put on a link of a node. What is for it from outside, or from the node's own processes, ends at
// the host's IP stack, so the host translates it to a stand-in, by which the bridge knows that address (the port stays).
// It cannot be the address itself: the host would take answers that come from it for forged ones.

// OwnRange4 and OwnRange6 hold the stand-ins. They mean something on their node alone, and no packet carries them beyond
// twill0. One is link-local (RFC 3927), the other unique local (RFC 4193).
const (
	OwnRange4 = "169.254.77.128/25"
	OwnRange6 = "fd77:7769:6c6c::80/121"
)

// MostOwn is how many addresses of one family have a stand-in.
const MostOwn = 128

// standInRanges hold all addresses by which a bridge knows what its host has translated, that for node ports included.
func standInRanges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("169.254.77.0/24"), netip.MustParsePrefix("fd77:7769:6c6c::/112")}
}

// OwnRange is the range of a family.
func OwnRange(v4 bool) netip.Prefix {
	if v4 {
		return netip.MustParsePrefix(OwnRange4)
	}
	return netip.MustParsePrefix(OwnRange6)
}

// Own are those of a host's addresses at which Services are served though they are its own, sorted.
func (s *Services) Own(addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	if s == nil {
		return nil
	}
	for _, a := range addresses {
		if _, ok := s.Host.external.Get(a.String()); ok {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// StandIns gives each of a host's own addresses, which are sorted, the one that the bridge knows it by: where its hash says or, if a smaller
// address is there, the next free one. So an address keeps its stand-in when others come and go, unless they collide. Those
// above MostOwn have none.
func StandIns(own []netip.Addr) map[netip.Addr]netip.Addr {
	out := map[netip.Addr]netip.Addr{}
	taken := map[netip.Addr]bool{}
	for _, a := range own { // sorted
		first, slot := OwnRange(a.Is4()).Addr().AsSlice(), hash32(a.String())
		for i := range uint32(MostOwn) {
			b := slices.Clone(first)
			b[len(b)-1] |= byte((slot + i) % MostOwn)
			if s, _ := netip.AddrFromSlice(b); !taken[s] {
				out[a], taken[s] = s, true
				break
			}
		}
	}
	return out
}

// OwnFrontend is an address and port of a host itself at which a Service is served, and the stand-in of the address.
type OwnFrontend struct {
	Frontend
	StandIn netip.Addr
}

// OwnFrontends are those of a host that carries these addresses, sorted.
func (s *Services) OwnFrontends(addresses []netip.Addr) (out []OwnFrontend) {
	own := s.Own(addresses)
	if len(own) == 0 {
		return nil
	}
	standIns := StandIns(own)
	for _, f := range s.Host.externals.All() {
		if to, ok := standIns[f.At.Addr()]; ok {
			out = append(out, OwnFrontend{f, to})
		}
	}
	slices.SortFunc(out, func(a, b OwnFrontend) int { return a.compare(b.Frontend) })
	return out
}

// StandIn is the one of an address; false if it has none.
func (w *World) StandIn(a netip.Addr) (netip.Addr, bool) {
	if !slices.Contains(w.Own, a) {
		return netip.Addr{}, false
	}
	s, ok := StandIns(w.Own)[a]
	return s, ok
}

// StandsFor is the address that a stand-in is for; any other address stands for itself.
func (w *World) StandsFor(a netip.Addr) netip.Addr {
	if OwnRange(a.Is4()).Contains(a) {
		for own, s := range StandIns(w.Own) {
			if s == a {
				return own
			}
		}
	}
	return a
}

// changedOwn lists the owners whose flows may differ because a host has other addresses of its own.
func changedOwn(before, after *World) (out []Owner) {
	if slices.Equal(before.Own, after.Own) {
		return nil
	}
	was, is := StandIns(before.Own), StandIns(after.Own)
	moved := map[netip.Addr]bool{}
	for _, a := range slices.Concat(before.Own, after.Own) {
		_, had := was[a]
		_, has := is[a]
		if had != has || was[a] != is[a] || slices.Contains(before.Own, a) != slices.Contains(after.Own, a) {
			moved[a] = true
			out = append(out, AddressOwner(a))
		}
	}
	for o, p := range after.Services.Ports.All() {
		if slices.ContainsFunc(slices.Concat(p.External, p.LoadBalancer), func(a netip.Addr) bool { return moved[a] }) {
			out = append(out, Owner(o))
		}
	}
	return out
}
