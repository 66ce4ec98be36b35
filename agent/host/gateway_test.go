package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func testGateway() Gateway {
	return Gateway{
		Link: "twill0", MAC: mac("0a:58:0a:f4:01:01"), MTU: 1450,
		Addresses: addrs("10.244.1.1", "2001:db8:244:1::1"),
		Routes:    prefixes("10.244.0.0/16", "2001:db8:244::/48"),
		RouterMAC: mac("0a:58:00:00:00:01"),
	}
}

// newGateway makes a host with a stand-in for the gateway port beside a link that is not ours.
func newGateway(t *testing.T) Gateway {
	t.Helper()
	newHost(t)
	addBridge(t, "uplink", "198.51.100.1/24", "2001:db8:1::1/64")
	addBridge(t, "twill0")
	return testGateway()
}

func ensure(t *testing.T, g interface {
	Ensure(context.Context) ([]string, error)
}) []string {
	t.Helper()
	repaired, err := g.Ensure(t.Context())
	must(t, err)
	return repaired
}

func TestANewGatewayIsMadeOnceAndThenSilent(t *testing.T) {
	g := newGateway(t)
	was := linkOf(t, "twill0").Attrs().HardwareAddr.String()
	want := []string{
		"sysctl net.ipv4.ip_forward was 0, now 1",
		"sysctl net.ipv6.conf.all.forwarding was 0, now 1",
		"twill0 had MAC " + was + ", now 0a:58:0a:f4:01:01",
		"twill0 had an MTU of 1500, now 1450",
		"twill0 lacked address 10.244.1.1/32, added",
		"twill0 lacked address 2001:db8:244:1::1/128, added",
		"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, added",
		"twill0 lacked route 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1, added",
		"twill0 lacked the neighbour entry of next hop 169.254.77.1, added",
		"twill0 lacked the neighbour entry of next hop fe80::77:1, added",
	}
	if d := cmp.Diff(want, ensure(t, g)); d != "" {
		t.Errorf("the first Ensure (-want +got):\n%s", d)
	}
	if again := ensure(t, g); len(again) > 0 {
		t.Errorf("the second Ensure repaired %q, want silence", again)
	}
	for to, want := range map[string]string{
		"10.244.7.9":         "169.254.77.1 from 10.244.1.1",
		"2001:db8:244:7::9":  "fe80::77:1 from 2001:db8:244:1::1",
		"198.51.100.9":       "invalid IP from 198.51.100.1",
		"2001:db8:1::beef:9": "invalid IP from 2001:db8:1::1",
	} {
		r, err := netlink.RouteGet(addrs(to)[0].AsSlice())
		must(t, err)
		if got := fromIP(r[0].Gw).String() + " from " + fromIP(r[0].Src).String(); got != want {
			t.Errorf("%s is reached via %s, want %s", to, got, want)
		}
	}
}

// The host answers packets that are too large for today's MTU: it gets them, and sends none.
func TestPodsWithALargerMTUAreHeardAndNotImitated(t *testing.T) {
	g := newGateway(t)
	ensure(t, g)
	g.MTU, g.Largest = 1400, 1450
	want := []string{
		"twill0 had route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, now 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1 mtu 1400",
		"twill0 had route 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1, now 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1 mtu 1400",
	}
	if d := cmp.Diff(want, ensure(t, g)); d != "" {
		t.Errorf("when the MTU has become smaller than that of a pod (-want +got):\n%s", d)
	}
	if got := linkOf(t, "twill0").Attrs().MTU; got != 1450 {
		t.Errorf("the link has an MTU of %d, want the pod's, 1450", got)
	}
	for _, to := range addrs("10.244.7.9", "2001:db8:244:7::9") {
		r, err := netlink.RouteGet(to.AsSlice())
		must(t, err)
		if r[0].MTU != 1400 {
			t.Errorf("to %s the MTU is %d, want 1400", to, r[0].MTU)
		}
	}
	g.Largest = 1400 // the pod has gone
	if got := ensure(t, g); len(got) != 3 || got[0] != "twill0 had an MTU of 1450, now 1400" {
		t.Errorf("when that pod has gone: %q, want the link and two routes changed", got)
	}
	if again := ensure(t, g); len(again) > 0 {
		t.Errorf("then %q, want silence", again)
	}
}

func TestEnsureRepairsEachDamageAndIsSilentAfterwards(t *testing.T) {
	g := newGateway(t)
	ensure(t, g)
	link := linkOf(t, "twill0")
	index := link.Attrs().Index
	v4 := route{to: g.Routes[0], via: nextHop(g.Addresses[0]), source: g.Addresses[0], onLink: true}
	v6 := route{to: g.Routes[1], via: nextHop(g.Addresses[1]), source: g.Addresses[1]}
	for _, c := range []struct {
		damage string
		do     func() error
		want   []string
	}{
		{"IPv4 address deleted", func() error { return netlink.AddrDel(link, addressRequest(g.Addresses[0])) }, []string{
			"twill0 lacked address 10.244.1.1/32, added",
			"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, added", // the kernel takes these away with the last address
			"twill0 lacked the neighbour entry of next hop 169.254.77.1, added"}},
		{"IPv6 address deleted", func() error { return netlink.AddrDel(link, addressRequest(g.Addresses[1])) }, []string{
			"twill0 lacked address 2001:db8:244:1::1/128, added",
			"twill0 had route 2001:db8:244::/48 via fe80::77:1, now 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1"}},
		{"foreign addresses added", func() error {
			return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(prefixes("203.0.113.7/24")[0])}),
				netlink.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(prefixes("2001:db8:99::7/64")[0])}))
		}, []string{"twill0 had stale address 203.0.113.7/24, removed", "twill0 had stale address 2001:db8:99::7/64, removed"}},
		{"address with another length", func() error {
			return errors.Join(netlink.AddrDel(link, addressRequest(g.Addresses[1])),
				netlink.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(prefixes("2001:db8:244:1::1/64")[0]), Flags: unix.IFA_F_NODAD}))
		}, []string{
			"twill0 had stale address 2001:db8:244:1::1/64, removed",
			"twill0 lacked address 2001:db8:244:1::1/128, added",
			"twill0 had route 2001:db8:244::/48 via fe80::77:1, now 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1"}},
		{"IPv4 route deleted", func() error { return netlink.RouteDel(v4.request(index, RouteProtocol)) },
			[]string{"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, added"}},
		{"IPv6 route deleted", func() error { return netlink.RouteDel(v6.request(index, RouteProtocol)) },
			[]string{"twill0 lacked route 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1, added"}},
		{"IPv4 route replaced by hand", func() error {
			other := v4
			other.via = addrs("169.254.77.9")[0]
			return netlink.RouteReplace(other.request(index, unix.RTPROT_BOOT))
		}, []string{"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, added"}},
		{"stale routes", func() error {
			old := v4
			old.to = prefixes("10.99.0.0/16")[0]
			old6 := v6
			old6.to = prefixes("2001:db8:99::/48")[0]
			return errors.Join(netlink.RouteAdd(old.request(index, RouteProtocol)), netlink.RouteAdd(old6.request(index, RouteProtocol)))
		}, []string{"twill0 had stale route 10.99.0.0/16 via 169.254.77.1 src 10.244.1.1, removed",
			"twill0 had stale route 2001:db8:99::/48 via fe80::77:1 src 2001:db8:244:1::1, removed"}},
		{"neighbour deleted", func() error { return netlink.NeighDel(neighbour{address: nextHop(g.Addresses[0])}.request(index)) },
			[]string{"twill0 lacked the neighbour entry of next hop 169.254.77.1, added"}},
		{"neighbour changed", func() error {
			return netlink.NeighSet(neighbour{nextHop(g.Addresses[1]), mac("0a:58:00:00:00:99")}.request(index))
		}, []string{"twill0 had next hop fe80::77:1 at 0a:58:00:00:00:99, now at 0a:58:00:00:00:01"}},
		{"stale neighbour", func() error { return netlink.NeighSet(neighbour{addrs("10.244.9.9")[0], g.RouterMAC}.request(index)) },
			[]string{"twill0 had a stale neighbour entry of 10.244.9.9, removed"}},
		{"link down", func() error { return netlink.LinkSetDown(link) }, []string{
			"twill0 was down",
			"twill0 lacked address 2001:db8:244:1::1/128, added", // the kernel takes these away
			"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.1.1, added",
			"twill0 lacked route 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1, added",
			"twill0 lacked the neighbour entry of next hop 169.254.77.1, added",
			"twill0 lacked the neighbour entry of next hop fe80::77:1, added"}},
		{"MTU", func() error { return netlink.LinkSetMTU(link, 1400) }, []string{"twill0 had an MTU of 1400, now 1450"}},
		{"MAC", func() error { return netlink.LinkSetHardwareAddr(link, mac("0a:58:0a:f4:01:99")) },
			[]string{"twill0 had MAC 0a:58:0a:f4:01:99, now 0a:58:0a:f4:01:01",
				"twill0 lacked the neighbour entry of next hop 169.254.77.1, added", // and these with the old MAC
				"twill0 lacked the neighbour entry of next hop fe80::77:1, added"}},
		{"forwarding", func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) },
			[]string{"sysctl net.ipv4.ip_forward was 0, now 1"}},
		{"IPv6 forwarding", func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0) },
			[]string{"sysctl net.ipv6.conf.all.forwarding was 0, now 1"}},
		{"strict reverse path filter", func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) },
			[]string{"sysctl net.ipv4.conf.twill0.rp_filter was 0, now 2"}},
	} {
		before := snapshot(t, "twill0")
		must(t, c.do())
		if d := cmp.Diff(c.want, ensure(t, g)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.damage, d)
		}
		if again := ensure(t, g); len(again) > 0 {
			t.Errorf("%s: the second Ensure repaired %q, want silence", c.damage, again)
		}
		if d := cmp.Diff(before, snapshot(t, "twill0")); d != "" {
			t.Errorf("%s: other links changed (-before +after):\n%s", c.damage, d)
		}
	}
}

func TestAGatewayOfTheUserspaceDatapathTransmitsWithoutOffload(t *testing.T) {
	newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "twill0"
	must(t, netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP})) // what OVS makes there
	g := testGateway()
	g.NoOffload = true
	ensure(t, g)
	if again := ensure(t, g); len(again) > 0 {
		t.Errorf("the second Ensure repaired %q, want silence", again)
	}
	must(t, netlink.LinkDel(linkOf(t, "twill0")))
	addBridge(t, "twill0")
	ensure(t, g)
	must(t, offload("twill0"))
	repaired := ensure(t, g)
	if want := "twill0 had tx-checksum-ip-generic on, now off"; !slices.Contains(repaired, want) {
		t.Errorf("repaired %q, want %q in it", repaired, want)
	}
}

func TestForeignRoutesOnTheGatewayLinkStay(t *testing.T) {
	g := newGateway(t)
	ensure(t, g)
	index := linkOf(t, "twill0").Attrs().Index
	foreign := route{to: prefixes("203.0.113.0/24")[0]}
	must(t, netlink.RouteAdd(foreign.request(index, unix.RTPROT_STATIC)))
	if repaired := ensure(t, g); len(repaired) > 0 {
		t.Errorf("Ensure repaired %q", repaired)
	}
	routes, err := routesOn(mustSocket(t), index, unix.RTPROT_STATIC)
	must(t, err)
	if len(routes) != 1 {
		t.Errorf("foreign routes after Ensure: %v, want the one", routes)
	}
}

func TestAForeignRouteInTheWayIsNamedAndStays(t *testing.T) {
	g := newGateway(t)
	uplink := linkOf(t, "uplink").Attrs().Index
	foreign := route{to: g.Routes[0], via: addrs("198.51.100.9")[0]}
	must(t, netlink.RouteAdd(foreign.request(uplink, unix.RTPROT_STATIC)))
	repaired, err := g.Ensure(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another route to 10.244.0.0/16 exists already on link uplink") {
		t.Errorf("got %v, want an error that names uplink", err)
	}
	if want := "twill0 lacked route 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:1::1, added"; !slices.Contains(repaired, want) {
		t.Errorf("repaired %q, want the rest of the work done too", repaired)
	}
	routes, err := routesOn(mustSocket(t), uplink, unix.RTPROT_STATIC)
	must(t, err)
	if len(routes) != 1 || asRoute(routes[0]).via != foreign.via {
		t.Errorf("the foreign route became %v", routes)
	}
}

func mustSocket(t *testing.T) *netlink.Handle {
	t.Helper()
	h, err := routeSocket()
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

func TestAnotherPodCIDRMovesAddressesAndSources(t *testing.T) {
	g := newGateway(t)
	ensure(t, g)
	g.Addresses = addrs("10.244.2.1", "2001:db8:244:2::1")
	want := []string{
		"twill0 lacked address 10.244.2.1/32, added",
		"twill0 lacked address 2001:db8:244:2::1/128, added",
		"twill0 had stale address 10.244.1.1/32, removed",
		"twill0 had stale address 2001:db8:244:1::1/128, removed",
		"twill0 lacked route 10.244.0.0/16 via 169.254.77.1 src 10.244.2.1, added",
		"twill0 had route 2001:db8:244::/48 via fe80::77:1, now 2001:db8:244::/48 via fe80::77:1 src 2001:db8:244:2::1",
	}
	if d := cmp.Diff(want, ensure(t, g)); d != "" {
		t.Errorf("the first Ensure (-want +got):\n%s", d)
	}
	if again := ensure(t, g); len(again) > 0 {
		t.Errorf("the second Ensure repaired %q", again)
	}
	r, err := netlink.RouteGet(addrs("10.244.7.9")[0].AsSlice())
	must(t, err)
	if got := fromIP(r[0].Src); got != g.Addresses[0] {
		t.Errorf("pods are reached from %s, want %s", got, g.Addresses[0])
	}
}

func TestAnIPv4OnlyGatewayLeavesIPv6Alone(t *testing.T) {
	g := newGateway(t)
	g.Addresses, g.Routes = g.Addresses[:1], g.Routes[:1]
	ensure(t, g)
	on, err := readSysctl("/proc/sys/net/ipv6/conf/all/forwarding")
	must(t, err)
	if on != "0" {
		t.Errorf("net.ipv6.conf.all.forwarding is %s, want it untouched", on)
	}
}

func TestARouteWithoutAnAddressOfItsFamilyIsAnError(t *testing.T) {
	g := newGateway(t)
	g.Addresses = g.Addresses[:1]
	if _, err := g.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "route to 2001:db8:244::/48: twill0 has no address of that family") {
		t.Errorf("got %v", err)
	}
}

func TestAMissingGatewayLinkIsNamed(t *testing.T) {
	newHost(t)
	if _, err := testGateway().Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "gateway twill0 does not exist") {
		t.Errorf("got %v", err)
	}
	must(t, testGateway().Remove(t.Context()))
}

func TestForwardingThatCannotBeSwitchedOnIsAnErrorWithTheRemedy(t *testing.T) {
	g := newGateway(t)
	g.ProcSys = t.TempDir()
	for _, path := range []string{"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/twill0/rp_filter"} {
		must(t, os.MkdirAll(filepath.Join(g.ProcSys, filepath.Dir(path)), 0o700))
		must(t, os.WriteFile(filepath.Join(g.ProcSys, path), []byte("0\n"), 0o600))
	}
	for path, value := range map[string]string{"net/ipv4/ip_forward": "0\n", "net/ipv6/conf/all/forwarding": "1\n"} {
		must(t, os.MkdirAll(filepath.Join(g.ProcSys, filepath.Dir(path)), 0o700))
		must(t, os.WriteFile(filepath.Join(g.ProcSys, path), []byte(value), 0o600))
	}
	freeze(t, filepath.Join(g.ProcSys, "net/ipv4/ip_forward"))
	freeze(t, filepath.Join(g.ProcSys, "net/ipv6/conf/all/forwarding"))
	_, err := g.Ensure(t.Context())
	want := "sysctl net.ipv4.ip_forward is 0 but must be 1 (the host routes packets of pods); set it on the node"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if err != nil && strings.Contains(err.Error(), "ipv6") {
		t.Errorf("got %v, but IPv6 forwarding is on already and needs no write", err)
	}
}

// freeze makes a file unwritable for root too.
func freeze(t *testing.T, path string) {
	t.Helper()
	must(t, unix.Mount(path, path, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	must(t, unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

func TestALinkThatLearnedItsRouteFromAnAdvertisementGoesOnLearning(t *testing.T) {
	g := newGateway(t)
	uplink := linkOf(t, "uplink").Attrs().Index
	learned := route{to: everything(g.Addresses[1]), via: addrs("fe80::1")[0]}
	must(t, netlink.RouteAdd(learned.request(uplink, unix.RTPROT_RA)))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/uplink/accept_ra", []byte("1"), 0))
	if repaired, want := ensure(t, g), "sysctl net.ipv6.conf.uplink.accept_ra was 1, now 2"; !slices.Contains(repaired, want) {
		t.Errorf("repaired %q, want %q in it", repaired, want)
	}
}

func TestRemoveTakesBackWhatEnsureMade(t *testing.T) {
	g := newGateway(t)
	setUp(t, "twill0")
	ensure(t, g)
	must(t, g.Remove(t.Context()))
	link := linkOf(t, "twill0")
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range addresses {
		if a.Scope == int(netlink.SCOPE_UNIVERSE) {
			t.Errorf("address %s is left", a)
		}
	}
	routes, err := routesOn(mustSocket(t), link.Attrs().Index, RouteProtocol)
	must(t, err)
	macs, err := permanents(mustSocket(t), link.Attrs().Index)
	must(t, err)
	if len(routes) > 0 || len(macs) > 0 {
		t.Errorf("left: routes %v, neighbours %v", routes, macs)
	}
	must(t, g.Remove(t.Context()))
}
