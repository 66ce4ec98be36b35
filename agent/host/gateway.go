package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Next hops of the routes into the pod network. They are fixed and stand for the router that the
// bridge is, so that the host holds one neighbour entry for each family however many nodes there are.
// They are link-local (RFC 3927, RFC 4291), used with onlink and with a permanent entry on the gateway
// link only: nothing else lives on that link, and no packet ever carries them.
const (
	NextHopIPv4 = "169.254.77.1"
	NextHopIPv6 = "fe80::77:1"
)

// RouteProtocol is the number that marks routes of Twill (`ip route show proto 119`). It is free in
// iproute2's rt_protos.
const RouteProtocol netlink.RouteProtocol = 119

// Gateway is the host's own end of the pod network: a link that exists already, an OVS internal port.
// The link belongs to Twill, so whatever is on it and not wanted there is removed.
type Gateway struct {
	// Link is the name of the port.
	Link string
	MAC  net.HardwareAddr
	// MTU in bytes is that of what the host sends to pods or forwards to them; what is larger it answers, or divides.
	MTU int
	// Largest is the largest packet in bytes that pods may send, where some have a larger MTU than that. To answer such a
	// packet the host must get it, and the kernel's datapath drops what is larger than the link that it is for
	// (ovs_vport_send), so the link has this MTU then, and the routes have the other.
	Largest int
	// Addresses are the first address of each podCIDR, set as /32 and /128. They are the source of
	// what the host itself sends to pods.
	Addresses []netip.Addr
	// Routes are the ranges of pods: the cluster CIDRs where known, else the podCIDR of every node.
	// Each needs an address of its family.
	Routes []netip.Prefix
	// RouterMAC is the MAC at which the bridge takes packets to be routed.
	RouterMAC net.HardwareAddr
	// NoOffload is as in Veth: needed with the userspace datapath.
	NoOffload bool
	// ProcSys is where sysctls are read and written; empty means /proc/sys.
	ProcSys string
}

// Ensure makes the link, its addresses, routes and neighbours and the sysctls of forwarding what they
// must be, and says what it had to repair. It does as much as it can: the error joins all that failed.
func (g Gateway) Ensure(ctx context.Context) (repaired []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := routeSocket()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(g.Link)
	if missing(err) {
		return nil, fmt.Errorf("gateway %s does not exist: it is a port of the bridge, see that the agent could add it: %w", g.Link, err)
	}
	if err != nil {
		return nil, fmt.Errorf("gateway %s: %w", g.Link, err)
	}
	r := &repair{Gateway: g, h: h, link: link}
	for _, step := range []func() error{r.sysctls, r.attributes, r.addresses, r.routes, r.neighbours} {
		err = errors.Join(err, step())
	}
	return r.done, err
}

// Remove takes away what Ensure made, except the link, which belongs to the bridge, and the forwarding
// sysctls, which others may rely on. With the last IPv4 address of the link the kernel drops whatever
// else was routed by it. A missing link is no error.
func (g Gateway) Remove(ctx context.Context) error {
	g.Addresses, g.Routes = nil, nil
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := routeSocket()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(g.Link)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("gateway %s: %w", g.Link, err)
	}
	r := &repair{Gateway: g, h: h, link: link}
	return errors.Join(r.routes(), r.neighbours(), r.addresses())
}

// repair is one comparison of a Gateway with the kernel.
type repair struct {
	Gateway
	h    *netlink.Handle
	link netlink.Link
	done []string
}

func (r *repair) say(format string, args ...any) {
	r.done = append(r.done, r.Link+" "+fmt.Sprintf(format, args...))
}

func (r *repair) attributes() error {
	var failed []error
	attrs := r.link.Attrs()
	if attrs.HardwareAddr.String() != r.MAC.String() {
		if err := r.h.LinkSetHardwareAddr(r.link, r.MAC); err != nil {
			failed = append(failed, fmt.Errorf("set MAC %s of %s: %w", r.MAC, r.Link, err))
		} else {
			r.say("had MAC %s, now %s", attrs.HardwareAddr, r.MAC)
		}
	}
	if mtu := max(r.MTU, r.Largest); attrs.MTU != mtu {
		if err := r.h.LinkSetMTU(r.link, mtu); err != nil {
			failed = append(failed, fmt.Errorf("set an MTU of %d on %s: %w", mtu, r.Link, err))
		} else {
			r.say("had an MTU of %d, now %d", attrs.MTU, mtu)
		}
	}
	if r.NoOffload {
		if off, err := noOffload(r.Link); err != nil {
			failed = append(failed, err)
		} else if len(off) > 0 {
			r.say("had %s on, now off", strings.Join(off, ", "))
		}
	}
	if attrs.Flags&net.FlagUp == 0 {
		if err := r.h.LinkSetUp(r.link); err != nil {
			failed = append(failed, fmt.Errorf("set %s up: %w", r.Link, err))
		} else {
			r.say("was down")
		}
	}
	return errors.Join(failed...)
}

// addresses adds what is missing and removes global addresses that are not wanted, in this order:
// with its last IPv4 address a link loses its routes and neighbours. Only an IPv6 address that is there
// with another prefix length, or unusable, goes first: the kernel refuses to have it twice.
func (r *repair) addresses() error {
	there, err := dump(func() ([]netlink.Addr, error) { return r.h.AddrList(r.link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", r.Link, err)
	}
	lacks := map[netip.Prefix]bool{}
	for _, a := range r.Addresses {
		lacks[single(a)] = true
	}
	var first, last []netlink.Addr
	for _, a := range there {
		p := fromIPNet(a.IPNet)
		inTheWay := p.Addr().Is6() && lacks[single(p.Addr())]
		switch {
		case lacks[p] && a.Flags&unix.IFA_F_DADFAILED == 0:
			delete(lacks, p)
		case inTheWay:
			first = append(first, a)
		case a.Scope == int(netlink.SCOPE_UNIVERSE):
			last = append(last, a)
		}
	}
	failed := r.removeAddresses(first)
	for _, a := range r.Addresses {
		if !lacks[single(a)] {
			continue
		}
		if err := r.h.AddrReplace(r.link, addressRequest(a)); err != nil {
			failed = append(failed, fmt.Errorf("add address %s to %s: %w", a, r.Link, err))
		} else {
			r.say("lacked address %s, added", single(a))
		}
	}
	return errors.Join(append(failed, r.removeAddresses(last)...)...)
}

func (r *repair) removeAddresses(stale []netlink.Addr) (failed []error) {
	for _, a := range stale {
		p := fromIPNet(a.IPNet)
		err := r.h.AddrDel(r.link, &netlink.Addr{IPNet: a.IPNet})
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL): // it went with another one
		case err != nil:
			failed = append(failed, fmt.Errorf("remove stale address %s from %s: %w", p, r.Link, err))
		default:
			r.say("had stale address %s, removed", p)
		}
	}
	return failed
}

// nextHop is the next hop of the family of a.
func nextHop(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.MustParseAddr(NextHopIPv4)
	}
	return netip.MustParseAddr(NextHopIPv6)
}

// routes compares the routes of our protocol on our link: by destination, so that a wrong one is
// replaced in one step and no packet finds none.
func (r *repair) routes() error {
	index := r.link.Attrs().Index
	list, err := routesOn(r.h, index, RouteProtocol)
	if err != nil {
		return fmt.Errorf("list the routes by %s: %w", r.Link, err)
	}
	there := map[netip.Prefix]route{}
	var stale []netlink.Route
	wanted := map[netip.Prefix]bool{}
	for _, to := range r.Routes {
		wanted[to.Masked()] = true
	}
	for _, n := range list {
		has := asRoute(n)
		if wanted[has.to] && n.Priority == defaultPriority(has.to) {
			there[has.to] = has
		} else {
			stale = append(stale, n)
		}
	}

	var failed []error
	mtu := 0
	if r.Largest > r.MTU {
		mtu = r.MTU
	}
	for to := range ordered(wanted) {
		want := route{to: to, via: nextHop(to.Addr()), source: ofFamily(r.Addresses, to.Addr()), onLink: to.Addr().Is4(), mtu: mtu}
		if !want.source.IsValid() {
			failed = append(failed, fmt.Errorf("route to %s: %s has no address of that family, give the node a podCIDR of it", to, r.Link))
			continue
		}
		has, ok := there[to]
		if ok && has == want {
			continue
		}
		if err := want.put(r.h, index, RouteProtocol); err != nil {
			failed = append(failed, fmt.Errorf("add route %s dev %s: %w", want, r.Link, err))
		} else if ok {
			r.say("had route %s, now %s", has, want)
		} else {
			r.say("lacked route %s, added", want)
		}
	}
	for _, n := range stale {
		if err := r.h.RouteDel(&n); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("remove stale route %s dev %s: %w", asRoute(n), r.Link, err))
		} else {
			r.say("had stale route %s, removed", asRoute(n))
		}
	}
	return errors.Join(failed...)
}

// defaultPriority is the metric that the kernel gives a route that asks for none.
func defaultPriority(to netip.Prefix) int {
	if to.Addr().Is4() {
		return 0
	}
	return 1024 // IP6_RT_PRIO_USER
}

// neighbours makes the next hops of the families in use permanent entries and removes others: on this
// link there is nobody else.
func (r *repair) neighbours() error {
	index := r.link.Attrs().Index
	macs, err := permanents(r.h, index)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Link, err)
	}
	var failed []error
	for _, a := range r.Addresses {
		hop := nextHop(a)
		has := macs[hop]
		delete(macs, hop)
		if has == r.RouterMAC.String() {
			continue
		}
		if err := r.h.NeighSet(neighbour{hop, r.RouterMAC}.request(index)); err != nil {
			failed = append(failed, fmt.Errorf("set the neighbour entry of %s on %s: %w", hop, r.Link, err))
		} else if has != "" {
			r.say("had next hop %s at %s, now at %s", hop, has, r.RouterMAC)
		} else {
			r.say("lacked the neighbour entry of next hop %s, added", hop)
		}
	}
	for hop := range ordered(macs) {
		if err := r.h.NeighDel(neighbour{address: hop}.request(index)); err != nil && !errors.Is(err, unix.ENOENT) {
			failed = append(failed, fmt.Errorf("remove the stale neighbour entry of %s from %s: %w", hop, r.Link, err))
		} else {
			r.say("had a stale neighbour entry of %s, removed", hop)
		}
	}
	return errors.Join(failed...)
}
