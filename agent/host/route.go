package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// route is the part of a kernel route that this package cares about, comparable with ==.
type route struct {
	to     netip.Prefix
	via    netip.Addr // zero: directly on the link
	source netip.Addr // preferred source, zero: the kernel's choice
	onLink bool       // the next hop needs no route of its own; IPv4 only, link-local IPv6 never needs one
	mtu    int        // in bytes, where it is less than the link's; 0: the link's
}

func (r route) String() string {
	s := r.to.String()
	if r.via.IsValid() {
		s += " via " + r.via.String()
	}
	if r.source.IsValid() {
		s += " src " + r.source.String()
	}
	if r.mtu > 0 {
		s += fmt.Sprintf(" mtu %d", r.mtu)
	}
	return s
}

// request is the route as netlink wants it, on a link of the main table.
func (r route) request(link int, protocol netlink.RouteProtocol) *netlink.Route {
	n := &netlink.Route{
		LinkIndex: link, Dst: toIPNet(r.to), Family: family(r.to.Addr()), Protocol: protocol,
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, MTU: r.mtu,
	}
	if r.via.IsValid() {
		n.Gw = r.via.AsSlice()
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.source.IsValid() {
		n.Src = r.source.AsSlice()
	}
	if r.onLink {
		n.Flags = int(netlink.FLAG_ONLINK)
	}
	return n
}

// asRoute reads a kernel route; one with several next hops is never ours and equals none.
func asRoute(n netlink.Route) route {
	r := route{to: fromIPNet(n.Dst), via: fromIP(n.Gw), source: fromIP(n.Src), onLink: n.Flags&unix.RTNH_F_ONLINK != 0, mtu: n.MTU}
	if !r.to.IsValid() {
		if n.Family == netlink.FAMILY_V4 {
			r.to = everything(netip.IPv4Unspecified())
		} else {
			r.to = everything(netip.IPv6Unspecified())
		}
	}
	return r
}

// put adds a route to the main table. One to the same destination on the same link is replaced; on
// another link it is foreign, and the error names it.
func (r route) put(h *netlink.Handle, link int, protocol netlink.RouteProtocol) error {
	want := r.request(link, protocol)
	err := h.RouteAdd(want)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	there, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(want.Family, &netlink.Route{Dst: want.Dst, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", r.to, err)
	}
	for _, other := range there {
		if other.LinkIndex == link {
			return h.RouteReplace(want)
		}
	}
	for _, other := range there {
		return fmt.Errorf("another route to %s exists already on link %s: remove it, or give that range to something else: %w",
			r.to, linkName(h, other.LinkIndex), unix.EEXIST)
	}
	return h.RouteAdd(want) // it has gone in the meantime
}

// linkName names a link for a sentence.
func linkName(h *netlink.Handle, index int) string {
	l, err := h.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("number %d", index)
	}
	return l.Attrs().Name
}

// routesOn lists the routes of the main table that leave by a link. Protocol 0 means any.
func routesOn(h *netlink.Handle, link int, protocol netlink.RouteProtocol) ([]netlink.Route, error) {
	filter, mask := &netlink.Route{LinkIndex: link, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE
	if protocol != 0 {
		filter.Protocol = protocol
		mask |= netlink.RT_FILTER_PROTOCOL
	}
	return dump(func() ([]netlink.Route, error) { return h.RouteListFiltered(netlink.FAMILY_ALL, filter, mask) })
}

// neighbour is a permanent entry: an address whose MAC is never asked for.
type neighbour struct {
	address netip.Addr
	mac     net.HardwareAddr
}

func (n neighbour) request(link int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link, Family: family(n.address), State: netlink.NUD_PERMANENT,
		Type: unix.RTN_UNICAST, IP: n.address.AsSlice(), HardwareAddr: n.mac,
	}
}

// permanents are the permanent neighbour entries of a link by address.
func permanents(h *netlink.Handle, link int) (map[netip.Addr]string, error) {
	all, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	macs := map[netip.Addr]string{}
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT != 0 {
			macs[fromIP(n.IP)] = n.HardwareAddr.String()
		}
	}
	return macs, nil
}
