package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Underlay is this node's end of the tunnels.
type Underlay struct {
	Address netip.Addr
	// Link carries the address, LinkMTU is its MTU in bytes.
	Link    string
	LinkMTU int
	// Why says in one sentence what was chosen and why, for the log.
	Why string
}

// Want narrows the choice of the tunnel address; the zero Want leaves it open.
type Want struct {
	Address   netip.Addr // this one and no other
	Interface string     // one that this link carries
	Family    int        // 4 or 6; 0 for either
}

// Bytes that a tunnel adds to a packet of a pod, Geneve without options (RFC 8926) and VXLAN (RFC 7348)
// alike: outer IP header, 8 of UDP, 8 of the tunnel, 14 of the inner Ethernet header.
const (
	overheadIPv4 = 20 + 8 + 8 + 14
	overheadIPv6 = 40 + 8 + 8 + 14
)

// PodMTU is the largest IP packet in bytes that fits through a tunnel over u.
func PodMTU(u Underlay) int {
	if u.Address.Is4() {
		return u.LinkMTU - overheadIPv4
	}
	return u.LinkMTU - overheadIPv6
}

// carried is an address of this host and the link it is on.
type carried struct {
	address netip.Addr
	link    *netlink.LinkAttrs
}

func (c carried) String() string { return c.address.String() + " on " + c.link.Name }

// Addresses are all of global scope that this host carries, sorted.
func Addresses() ([]netip.Addr, error) {
	h, err := routeSocket()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	all, err := hostAddresses(h)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, c := range all {
		out = append(out, c.address)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// ChooseUnderlay picks the tunnel address among what this host carries. candidates are the InternalIPs
// of the Node object in its order: peers send to those, so they come before any other address.
func ChooseUnderlay(candidates []netip.Addr, want Want) (Underlay, error) {
	if want.Family != 0 && want.Family != 4 && want.Family != 6 {
		return Underlay{}, fmt.Errorf("tunnel address: family %d is neither 4 nor 6", want.Family)
	}
	h, err := routeSocket()
	if err != nil {
		return Underlay{}, err
	}
	defer h.Close()
	all, err := hostAddresses(h)
	if err != nil {
		return Underlay{}, err
	}
	c, because, err := want.choose(candidates, all)
	if err != nil {
		return Underlay{}, fmt.Errorf("tunnel address: %w", err)
	}
	u := Underlay{Address: c.address, Link: c.link.Name, LinkMTU: c.link.MTU, Why: c.String() + ": " + because}
	if c.link.Flags&net.FlagLoopback != 0 {
		// The address of a routed host; its packets leave by other links.
		out, err := defaultLink(h, c.address)
		if err != nil {
			return Underlay{}, fmt.Errorf("tunnel address %s: %w", c, err)
		}
		u.LinkMTU = out.MTU
		u.Why += fmt.Sprintf("; MTU %d of %s, by which the default route leaves", out.MTU, out.Name)
	}
	return u, nil
}

// choose looks among all; because ends the sentence of Why.
func (w Want) choose(candidates []netip.Addr, all []carried) (c carried, because string, err error) {
	if w.Address.IsValid() {
		for _, c := range all {
			if c.address != w.Address {
				continue
			}
			if err := w.fits(c); err != nil {
				return carried{}, "", err
			}
			return c, "configured as the tunnel address" + unknownToPeers(c.address, candidates), nil
		}
		return carried{}, "", fmt.Errorf("%s is configured but no link of this host carries it: configure one of %s, or none", w.Address, names(all))
	}
	for _, a := range candidates {
		for _, c := range all {
			if c.address != a || w.fits(c) != nil {
				continue
			}
			because := "the first InternalIP of the Node object that this host carries"
			if w.Interface != "" {
				because = "the first InternalIP of the Node object on the configured interface"
			}
			if w.Family != 0 {
				because += fmt.Sprintf(", of the configured family IPv%d", w.Family)
			}
			return c, because, nil
		}
	}
	if w.Interface != "" {
		for _, c := range all {
			if w.fits(c) == nil {
				return c, "the first address of the configured interface" + unknownToPeers(c.address, candidates), nil
			}
		}
		return carried{}, "", fmt.Errorf("the configured interface %s carries no %s: give it one or configure another; this host has %s",
			w.Interface, w.kind(), names(all))
	}
	if len(candidates) == 0 {
		return carried{}, "", errors.New("the Node object has no InternalIP: start kubelet with --node-ip, or configure the tunnel address or interface")
	}
	return carried{}, "", fmt.Errorf("no link of this host carries an InternalIP of the Node object (%s) that is a %s: correct kubelet's --node-ip, or configure the tunnel address or interface; this host has %s",
		join(candidates), w.kind(), names(all))
}

// fits tells by an error what of the wish an address does not fulfil.
func (w Want) fits(c carried) error {
	if w.Family == 4 && !c.address.Is4() || w.Family == 6 && c.address.Is4() {
		return fmt.Errorf("%s is configured, and so is family IPv%d: drop one of the two", c.address, w.Family)
	}
	if w.Interface != "" && c.link.Name != w.Interface {
		return fmt.Errorf("%s is configured but is on %s, not on the configured interface %s: drop one of the two", c.address, c.link.Name, w.Interface)
	}
	return nil
}

func (w Want) kind() string {
	if w.Family == 0 {
		return "global address"
	}
	return fmt.Sprintf("global IPv%d address", w.Family)
}

// unknownToPeers warns about an address at which no peer will look for this node.
func unknownToPeers(a netip.Addr, candidates []netip.Addr) string {
	if slices.Contains(candidates, a) {
		return ""
	}
	return fmt.Sprintf("; it is no InternalIP of the Node object (%s), and peers send to those", join(candidates))
}

func join(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

func names(all []carried) string {
	if len(all) == 0 {
		return "no global address"
	}
	words := make([]string, len(all))
	for i, c := range all {
		words[i] = c.String()
	}
	return strings.Join(words, ", ")
}

// hostAddresses lists the global addresses of this host by link and in the kernel's order.
func hostAddresses(h *netlink.Handle) (all []carried, err error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if link := byIndex[a.LinkIndex]; link != nil && a.Scope == int(netlink.SCOPE_UNIVERSE) {
			all = append(all, carried{fromIP(a.IP), link})
		}
	}
	return all, nil
}

// defaultLink is the link by which the default route of the family of a leaves.
func defaultLink(h *netlink.Handle, a netip.Addr) (*netlink.LinkAttrs, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, family(a)) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if asRoute(r).to.Bits() != 0 {
			continue
		}
		if len(r.MultiPath) > 0 {
			r.LinkIndex = r.MultiPath[0].LinkIndex
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs(), nil
		}
	}
	return nil, errors.New("it is on a loopback link, and without a default route nothing tells the MTU of the network: add one, or choose an address of a real link")
}
