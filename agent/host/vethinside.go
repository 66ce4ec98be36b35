package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routes are what the pod's main table must hold, in an order in which they can be added.
func (v Veth) routes() []route {
	var all []route
	for _, gw := range v.Gateways {
		all = append(all, route{to: single(gw)})
		if v.DefaultRoute {
			all = append(all, route{to: everything(gw), via: gw})
		}
	}
	for _, to := range v.Routes {
		all = append(all, route{to: to.Masked(), via: ofFamily(v.Gateways, to.Addr())})
	}
	return all
}

// configurePod makes the pod end of an existing pair what it must be.
func (v Veth) configurePod(p *pair) error {
	link, err := p.pod.LinkByName(v.IfName)
	if err != nil {
		return fmt.Errorf("look for it: %w", err)
	}
	if link.Attrs().HardwareAddr.String() != v.MAC.String() {
		if err := p.pod.LinkSetHardwareAddr(link, v.MAC); err != nil {
			return fmt.Errorf("set MAC %s: %w", v.MAC, err)
		}
	}
	if link.Attrs().MTU != v.MTU {
		if err := p.pod.LinkSetMTU(link, v.MTU); err != nil {
			return fmt.Errorf("set an MTU of %d: %w", v.MTU, err)
		}
	}
	if v.NoOffload {
		err := p.netns.Do(func(ns.NetNS) error { _, err := noOffload(v.IfName); return err })
		if err != nil {
			return err
		}
	}
	if err := p.pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	for _, a := range v.Addresses {
		if err := v.addAddress(p, link, a); err != nil {
			return err
		}
	}
	// Before there is a route to them: nobody ever has to ask for them.
	for _, gw := range v.Gateways {
		if err := p.pod.NeighSet(neighbour{gw, v.RouterMAC}.request(link.Attrs().Index)); err != nil {
			return fmt.Errorf("set the neighbour entry of gateway %s: %w", gw, err)
		}
	}
	for _, r := range v.routes() {
		if err := r.put(p.pod, link.Attrs().Index, unix.RTPROT_BOOT); err != nil {
			return fmt.Errorf("add route %s: %w", r, err)
		}
	}
	return nil
}

// configureHost prepares the host end and sets it up.
func (v Veth) configureHost(h *netlink.Handle) error {
	link, err := h.LinkByName(v.Host)
	if err != nil {
		return fmt.Errorf("look for the host end %s: %w", v.Host, err)
	}
	if err := v.withoutIPv6(h, link); err != nil {
		return fmt.Errorf("host end %s: keep IPv6 link-local addresses away: %w", v.Host, err)
	}
	if err := seal(h, link, v.ProcSys); err != nil {
		return fmt.Errorf("host end %s: %w", v.Host, err)
	}
	if link.Attrs().MTU != v.MTU {
		if err := h.LinkSetMTU(link, v.MTU); err != nil {
			return fmt.Errorf("host end %s: set an MTU of %d: %w", v.Host, v.MTU, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("host end %s: set it up: %w", v.Host, err)
	}
	return nil
}

// withoutIPv6 keeps the kernel from giving the host end a link-local address and a multicast route. Neither would ever be
// used, and ovs-vswitchd reads all addresses and all routes of the host at every change of one. Where sysctls cannot be
// written there is a route, but no address.
func (v Veth) withoutIPv6(h *netlink.Handle, link netlink.Link) error {
	err := os.WriteFile(filepath.Join(procSys(v.ProcSys), "net/ipv6/conf", v.Host, "disable_ipv6"), []byte("1"), 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) { // the kernel runs without IPv6, or has none on a link with such an MTU
		return nil
	}
	if err := h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE); err != nil && !noIPv6(err) {
		return err
	}
	return nil
}

// noIPv6 tells whether the kernel said that it has no IPv6 at all, or none on that link.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// addAddress gives the pod end an address. Where the runtime has switched IPv6 off in the pod, it is
// switched on for this interface: the cluster gives out IPv6 addresses, and this one is wanted.
func (v Veth) addAddress(p *pair, link netlink.Link, a netip.Addr) error {
	request := addressRequest(a)
	err := p.pod.AddrReplace(link, request)
	if a.Is6() && errors.Is(err, unix.EACCES) {
		if err = p.netns.Do(func(ns.NetNS) error { return v.enableIPv6() }); err != nil {
			return fmt.Errorf("address %s: IPv6 is switched off in the pod and cannot be switched on, set the sysctl net.ipv6.conf.%s.disable_ipv6=0 for it: %w",
				a, v.IfName, err)
		}
		err = p.pod.AddrReplace(link, request)
	}
	if a.Is6() && noIPv6(err) {
		return fmt.Errorf("address %s: the kernel runs without IPv6, boot it without ipv6.disable=1: %w", a, err)
	}
	if err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return nil
}

func (v Veth) enableIPv6() error {
	return os.WriteFile(filepath.Join(procSys(v.ProcSys), "net/ipv6/conf", v.IfName, "disable_ipv6"), []byte("0"), 0)
}

// addressRequest is a as /32 or /128. IPv6 without duplicate address detection (RFC 4862, 5.4): the
// address comes from a lease, and detection would keep it unusable for a second.
func addressRequest(a netip.Addr) *netlink.Addr {
	n := &netlink.Addr{IPNet: toIPNet(single(a))}
	if a.Is6() {
		n.Flags = unix.IFA_F_NODAD
	}
	return n
}

// CheckVeth compares a pair with what AddVeth would make, one sentence for each deviation. Empty means
// that all is right.
func CheckVeth(v Veth) []string {
	p, err := v.open()
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", v.NetNS, err)}
	}
	defer p.Close()
	inside, wrong := v.checkInside(p)
	return append(wrong, v.checkHost(p.host, inside)...)
}

// checkHost looks at the host end; inside is the pod end, nil when there is none.
func (v Veth) checkHost(h *netlink.Handle, inside netlink.Link) (wrong []string) {
	link, err := h.LinkByName(v.Host)
	if err != nil {
		return []string{fmt.Sprintf("host end %s: %v", v.Host, err)}
	}
	attrs := link.Attrs()
	if inside != nil && !mates(inside, link) {
		wrong = append(wrong, fmt.Sprintf("host end %s is not the other end of %s", v.Host, v.IfName))
	}
	if attrs.Flags&net.FlagUp == 0 {
		wrong = append(wrong, fmt.Sprintf("host end %s is down", v.Host))
	}
	if attrs.Group != podGroup && attrs.Group != leavingGroup {
		wrong = append(wrong, fmt.Sprintf("host end %s is in link group %d, not %d", v.Host, attrs.Group, podGroup))
	}
	if attrs.MTU != v.MTU {
		wrong = append(wrong, fmt.Sprintf("host end %s has an MTU of %d, not %d", v.Host, attrs.MTU, v.MTU))
	}
	return wrong
}

func offloadSentence(on []string, err error) string {
	if err != nil {
		return fmt.Sprintf("does not tell its offload features: %v", err)
	}
	return "has " + strings.Join(on, ", ") + " on"
}

func (v Veth) checkInside(p *pair) (link netlink.Link, wrong []string) {
	say := func(format string, args ...any) {
		wrong = append(wrong, v.IfName+" in "+v.NetNS+" "+fmt.Sprintf(format, args...))
	}
	link, err := p.pod.LinkByName(v.IfName)
	if err != nil {
		say("cannot be found: %v", err)
		return nil, wrong
	}
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		say("is down")
	}
	if attrs.HardwareAddr.String() != v.MAC.String() {
		say("has MAC %s, not %s", attrs.HardwareAddr, v.MAC)
	}
	if attrs.MTU != v.MTU {
		say("has an MTU of %d, not %d", attrs.MTU, v.MTU)
	}
	if v.NoOffload {
		var on []string
		err := p.netns.Do(func(ns.NetNS) (err error) { on, err = offloads(v.IfName); return })
		if err != nil || len(on) > 0 {
			say("%s", offloadSentence(on, err))
		}
	}

	addresses, err := dump(func() ([]netlink.Addr, error) { return p.pod.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		say("does not tell its addresses: %v", err)
	}
	has := map[netip.Prefix]bool{}
	for _, a := range addresses {
		has[fromIPNet(a.IPNet)] = true
	}
	for _, a := range v.Addresses {
		if !has[single(a)] {
			say("lacks address %s", single(a))
		}
	}

	routes, err := routesOn(p.pod, attrs.Index, 0)
	if err != nil {
		say("does not tell its routes: %v", err)
	}
	goes := map[netip.Prefix]netip.Addr{}
	for _, n := range routes {
		r := asRoute(n)
		goes[r.to] = r.via
	}
	for _, r := range v.routes() {
		if via, ok := goes[r.to]; !ok || via != r.via {
			say("lacks route %s", r)
		}
	}

	macs, err := permanents(p.pod, attrs.Index)
	if err != nil {
		say("does not tell its neighbours: %v", err)
	}
	for _, gw := range v.Gateways {
		if macs[gw] != v.RouterMAC.String() {
			say("lacks the permanent neighbour entry %s at %s", gw, v.RouterMAC)
		}
	}
	return link, wrong
}
