package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"runtime"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// newNetNS makes a network namespace that is gone after the test.
func newNetNS(t *testing.T) ns.NetNS {
	t.Helper()
	if os.Geteuid() != 0 {
		who, _ := user.Current()
		if os.Getenv("CI") != "" {
			t.Fatalf("needs root for network namespaces, is run by %v", who)
		}
		t.Skipf("needs root for network namespaces, is run by %v", who)
	}
	space, err := testutils.NewNS()
	must(t, err)
	t.Cleanup(func() {
		space.Close()
		if err := testutils.UnmountNS(space); err != nil {
			t.Error(err)
		}
	})
	return space
}

// newHost puts the rest of the test into a network namespace of its own. Functions run elsewhere,
// subtests and goroutines, are not in it: those use Do.
func newHost(t *testing.T) ns.NetNS {
	t.Helper()
	space := newNetNS(t)
	before, err := ns.GetCurrentNS()
	must(t, err)
	runtime.LockOSThread()
	must(t, space.Set())
	t.Cleanup(func() {
		if err := before.Set(); err != nil {
			t.Error(err) // the thread stays locked and ends with the test's goroutine
			return
		}
		before.Close()
		runtime.UnlockOSThread()
	})
	setUp(t, "lo")
	return space
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func linkOf(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func setUp(t *testing.T, name string) {
	t.Helper()
	must(t, netlink.LinkSetUp(linkOf(t, name)))
}

// addBridge stands in for a link that is not ours, or that OVS made.
func addBridge(t *testing.T, name string, addresses ...string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	l := linkOf(t, name)
	must(t, netlink.LinkSetUp(l))
	for _, a := range addresses {
		addAddress(t, name, a)
	}
	return l
}

func addAddress(t *testing.T, link, cidr string) {
	t.Helper()
	p := netip.MustParsePrefix(cidr)
	a := &netlink.Addr{IPNet: toIPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	must(t, netlink.AddrAdd(linkOf(t, link), a))
}

// inside runs f in a namespace and lets the test fail from there.
func inside(t *testing.T, space ns.NetNS, f func() error) {
	t.Helper()
	if err := space.Do(func(ns.NetNS) error { return f() }); err != nil {
		t.Fatal(err)
	}
}

func addrs(words ...string) (all []netip.Addr) {
	for _, w := range words {
		all = append(all, netip.MustParseAddr(w))
	}
	return all
}

func prefixes(words ...string) (all []netip.Prefix) {
	for _, w := range words {
		all = append(all, netip.MustParsePrefix(w))
	}
	return all
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// runNFT changes tables as somebody else would, with the nft binary.
func runNFT(t *testing.T, change func(*knftables.Transaction)) {
	t.Helper()
	nft, err := knftables.New("", "")
	must(t, err)
	tx := nft.NewTransaction()
	change(tx)
	must(t, nft.Run(t.Context(), tx))
}

// snapshot is every address, route and neighbour of links other than except, in words.
func snapshot(t *testing.T, except string) (all []string) {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Attrs().Name == except {
			continue
		}
		all = append(all, fmt.Sprint(l.Attrs().Name, l.Attrs().MTU, l.Attrs().HardwareAddr, l.Attrs().Flags))
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		must(t, err)
		for _, a := range addresses {
			all = append(all, fmt.Sprint(l.Attrs().Name, " ", a.IPNet, a.Scope))
		}
		routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
		must(t, err)
		for _, r := range routes {
			all = append(all, r.String())
		}
		neighbours, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		must(t, err)
		for _, n := range neighbours {
			if n.State == netlink.NUD_NOARP {
				continue // multicast, the kernel's own coming and going
			}
			all = append(all, l.Attrs().Name+" "+n.String())
		}
	}
	return all
}
