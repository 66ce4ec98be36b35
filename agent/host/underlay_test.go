package host

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestTheTunnelAddressAndWhyItWasChosen(t *testing.T) {
	newHost(t)
	phy := addBridge(t, "br-phy", "198.51.100.1/24", "2001:db8:1::1/64")
	must(t, netlink.LinkSetMTU(phy, 9000))
	addBridge(t, "eth1", "203.0.113.1/24", "203.0.113.2/24")
	addAddress(t, "lo", "198.18.0.1/32")
	const first = "the first InternalIP of the Node object that this host carries"
	const has = "this host has 198.18.0.1 on lo, 198.51.100.1 on br-phy, 203.0.113.1 on eth1, 203.0.113.2 on eth1, 2001:db8:1::1 on br-phy"
	for _, c := range []struct {
		internalIPs []netip.Addr
		want        Want
		why, err    string
		podMTU      int
	}{
		{internalIPs: addrs("198.51.100.1", "2001:db8:1::1"), why: "198.51.100.1 on br-phy: " + first, podMTU: 8950},
		{internalIPs: addrs("198.51.100.1", "2001:db8:1::1"), want: Want{Family: 6},
			why: "2001:db8:1::1 on br-phy: " + first + ", of the configured family IPv6", podMTU: 8930},
		{internalIPs: addrs("192.0.2.1", "203.0.113.2"), why: "203.0.113.2 on eth1: " + first, podMTU: 1450},
		{internalIPs: addrs("198.51.100.1", "203.0.113.2"), want: Want{Interface: "eth1"},
			why: "203.0.113.2 on eth1: the first InternalIP of the Node object on the configured interface", podMTU: 1450},
		{internalIPs: addrs("198.51.100.1"), want: Want{Interface: "eth1"},
			why:    "203.0.113.1 on eth1: the first address of the configured interface; it is no InternalIP of the Node object (198.51.100.1), and peers send to those",
			podMTU: 1450},
		{internalIPs: addrs("198.51.100.1", "203.0.113.2"), want: Want{Address: addrs("203.0.113.2")[0]},
			why: "203.0.113.2 on eth1: configured as the tunnel address", podMTU: 1450},
		{want: Want{Address: addrs("203.0.113.2")[0]},
			why: "203.0.113.2 on eth1: configured as the tunnel address; it is no InternalIP of the Node object (none), and peers send to those", podMTU: 1450},

		{err: "tunnel address: the Node object has no InternalIP: start kubelet with --node-ip, or configure the tunnel address or interface"},
		{internalIPs: addrs("192.0.2.1", "192.0.2.2"),
			err: "tunnel address: no link of this host carries an InternalIP of the Node object (192.0.2.1, 192.0.2.2) that is a global address: correct kubelet's --node-ip, or configure the tunnel address or interface; " + has},
		{internalIPs: addrs("198.51.100.1"), want: Want{Address: addrs("192.0.2.9")[0]},
			err: "tunnel address: 192.0.2.9 is configured but no link of this host carries it: configure one of " + strings.TrimPrefix(has, "this host has ") + ", or none"},
		{internalIPs: addrs("198.51.100.1"), want: Want{Interface: "eth9"},
			err: "tunnel address: the configured interface eth9 carries no global address: give it one or configure another; " + has},
		{internalIPs: addrs("198.51.100.1"), want: Want{Interface: "eth1", Family: 6},
			err: "tunnel address: the configured interface eth1 carries no global IPv6 address: give it one or configure another; " + has},
		{want: Want{Address: addrs("203.0.113.2")[0], Family: 6},
			err: "tunnel address: 203.0.113.2 is configured, and so is family IPv6: drop one of the two"},
		{want: Want{Address: addrs("203.0.113.2")[0], Interface: "br-phy"},
			err: "tunnel address: 203.0.113.2 is configured but is on eth1, not on the configured interface br-phy: drop one of the two"},
		{want: Want{Family: 5}, err: "tunnel address: family 5 is neither 4 nor 6"},
		{internalIPs: addrs("198.18.0.1"),
			err: "tunnel address 198.18.0.1 on lo: it is on a loopback link, and without a default route nothing tells the MTU of the network: add one, or choose an address of a real link"},
	} {
		u, err := ChooseUnderlay(c.internalIPs, c.want)
		switch {
		case c.err != "" && (err == nil || err.Error() != c.err):
			t.Errorf("%v %+v:\n got %v\nwant %s", c.internalIPs, c.want, err, c.err)
		case c.err == "" && err != nil:
			t.Errorf("%v %+v: %v", c.internalIPs, c.want, err)
		case c.err == "" && (u.Why != c.why || PodMTU(u) != c.podMTU):
			t.Errorf("%v %+v:\n got %s, MTU of pods %d\nwant %s, %d", c.internalIPs, c.want, u.Why, PodMTU(u), c.why, c.podMTU)
		}
	}
}

func TestAnAddressOnLoopbackTakesItsMTUFromTheDefaultRoute(t *testing.T) {
	newHost(t)
	eth := addBridge(t, "eth0", "198.51.100.1/24")
	must(t, netlink.LinkSetMTU(eth, 1400))
	addAddress(t, "lo", "198.18.0.1/32")
	r := route{to: everything(addrs("198.18.0.1")[0]), via: addrs("198.51.100.254")[0]}
	must(t, netlink.RouteAdd(r.request(eth.Attrs().Index, 3)))
	u, err := ChooseUnderlay(addrs("198.18.0.1"), Want{})
	must(t, err)
	want := "198.18.0.1 on lo: the first InternalIP of the Node object that this host carries; MTU 1400 of eth0, by which the default route leaves"
	if u.Why != want || PodMTU(u) != 1350 {
		t.Errorf("got %q with an MTU of %d for pods, want %q and 1350", u.Why, PodMTU(u), want)
	}
}
