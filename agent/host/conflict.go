package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overlaps names the addresses and routes of this host, other than those on the link of the gateway, that lie in
// the ranges of pods or contain one of them. Default routes contain everything and do not count.
func Overlaps(ranges []netip.Prefix, gateway string) ([]string, error) {
	h, err := routeSocket()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("reading the links of this host: %w", err)
	}
	var out []string
	add := func(what string, n *net.IPNet, link string) {
		p, ok := prefixOf(n)
		if !ok || p.Bits() == 0 || link == gateway || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			return
		}
		for _, r := range ranges {
			if r.Overlaps(p) {
				if line := fmt.Sprintf("%s %s of %s overlaps %s", what, p, link, r); !slices.Contains(out, line) {
					out = append(out, line)
				}
			}
		}
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addresses, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("reading the addresses of this host: %w", err)
	}
	for _, a := range addresses {
		add("address", a.IPNet, names[a.LinkIndex])
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("reading the routes of this host: %w", err)
	}
	for _, r := range routes {
		add("route", r.Dst, names[r.LinkIndex])
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}
