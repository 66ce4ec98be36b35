package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Hop is the neighbour by which the host reaches an address outside: the address itself where it is on the link, else
// the router.
type Hop struct {
	Link    string
	Address netip.Addr
	// MAC is what the kernel knows; nil while it does not know.
	MAC net.HardwareAddr
}

// discardPort is that of RFC 863: nobody listens there.
const discardPort = 9

// usable are the states of a neighbour entry whose MAC address the kernel sends to.
const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT | netlink.NUD_NOARP

// HopTo looks up the neighbour by which the kernel reaches an address. Where its MAC address is not known, the kernel is
// made to ask for it, by a datagram to the discard port, and a later call will know.
func HopTo(a netip.Addr) (Hop, error) {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err == nil && len(routes) == 0 {
		err = errors.New("no route")
	}
	if err != nil {
		return Hop{}, fmt.Errorf("route to %s: %w", a, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return Hop{}, fmt.Errorf("link of the route to %s: %w", a, err)
	}
	h := Hop{Link: link.Attrs().Name, Address: a}
	if gw := fromIP(routes[0].Gw); gw.IsValid() {
		h.Address = gw
	}
	entries, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, family(a)) })
	if err != nil {
		return Hop{}, fmt.Errorf("neighbours on %s: %w", h.Link, err)
	}
	for _, n := range entries {
		if fromIP(n.IP) == h.Address && n.State&usable != 0 && len(n.HardwareAddr) > 0 {
			h.MAC = n.HardwareAddr
			return h, nil
		}
	}
	c, err := net.Dial("udp", netip.AddrPortFrom(a, discardPort).String())
	if err != nil {
		return Hop{}, fmt.Errorf("ask for the MAC address of %s: %w", h.Address, err)
	}
	defer c.Close()
	_, err = c.Write([]byte{0})
	if err != nil {
		return Hop{}, fmt.Errorf("ask for the MAC address of %s: %w", h.Address, err)
	}
	return h, nil
}
