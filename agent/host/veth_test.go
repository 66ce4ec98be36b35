package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func podVeth(pod ns.NetNS) Veth {
	return Veth{
		Host: "veth0a1b2c", NetNS: pod.Path(), IfName: "eth0",
		MAC: mac("0a:58:0a:f4:01:05"), MTU: 1450,
		Addresses: addrs("10.244.1.5", "2001:db8:244:1::5"),
		Gateways:  addrs("10.244.1.1", "2001:db8:244:1::1"), RouterMAC: mac("0a:58:00:00:00:01"),
		DefaultRoute: true,
		Routes:       prefixes("198.18.0.0/15"),
		NoOffload:    true,
	}
}

func TestAPodGetsEverythingItsVethAsksFor(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	must(t, AddVeth(t.Context(), v, nil))
	if wrong := CheckVeth(v); len(wrong) > 0 {
		t.Errorf("CheckVeth right after AddVeth: %q", wrong)
	}
	inside(t, pod, func() error {
		to, err := netlink.RouteGet(addrs("203.0.113.9")[0].AsSlice())
		if err != nil {
			return err
		}
		if got := fromIP(to[0].Gw).String() + " from " + fromIP(to[0].Src).String(); got != "10.244.1.1 from 10.244.1.5" {
			return fmt.Errorf("203.0.113.9 is reached via %s, want 10.244.1.1 from 10.244.1.5", got)
		}
		to, err = netlink.RouteGet(addrs("2001:db8:ffff::9")[0].AsSlice())
		if err != nil {
			return err
		}
		if got := fromIP(to[0].Gw).String() + " from " + fromIP(to[0].Src).String(); got != "2001:db8:244:1::1 from 2001:db8:244:1::5" {
			return fmt.Errorf("2001:db8:ffff::9 is reached via %s", got)
		}
		return nil
	})
	addresses, err := netlink.AddrList(linkOf(t, v.Host), netlink.FAMILY_ALL)
	must(t, err)
	if len(addresses) != 0 {
		t.Errorf("the host end has addresses %v, want none", addresses)
	}
	if routes := routesOfLink(t, v.Host); len(routes) != 0 {
		t.Errorf("the host end has routes %v, want none", routes)
	}
}

// routesOfLink are those of all tables.
func routesOfLink(t *testing.T, name string) []netlink.Route {
	t.Helper()
	filter := &netlink.Route{LinkIndex: linkOf(t, name).Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	must(t, err)
	return routes
}

func TestWhereSysctlsCannotBeWrittenTheHostEndHasNoAddressAllTheSame(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	v.ProcSys = "/dev/null" // no directory
	must(t, AddVeth(t.Context(), v, nil))
	addresses, err := netlink.AddrList(linkOf(t, v.Host), netlink.FAMILY_ALL)
	must(t, err)
	if len(addresses) != 0 {
		t.Errorf("the host end has addresses %v, want none", addresses)
	}
	if routes := routesOfLink(t, v.Host); len(routes) == 0 {
		t.Error("there is no route either: this test no longer shows what the sysctl is for")
	}
}

func TestAnAdditionalInterfaceLeavesTheDefaultRouteAlone(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	must(t, AddVeth(t.Context(), podVeth(pod), nil))
	second := Veth{
		Host: "veth2", NetNS: pod.Path(), IfName: "net1", MAC: mac("0a:58:0a:f4:02:05"), MTU: 1450,
		Addresses: addrs("10.244.1.6"), Gateways: addrs("10.244.1.2"), RouterMAC: mac("0a:58:00:00:00:01"),
		Routes: prefixes("203.0.113.0/24"),
	}
	must(t, AddVeth(t.Context(), second, nil))
	for _, v := range []Veth{podVeth(pod), second} {
		if wrong := CheckVeth(v); len(wrong) > 0 {
			t.Errorf("%s: %q", v.IfName, wrong)
		}
	}
}

func TestTwoInterfacesCannotBothHaveTheDefaultRoute(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	must(t, AddVeth(t.Context(), podVeth(pod), nil))
	second := podVeth(pod)
	second.Host, second.IfName, second.Addresses, second.Routes = "veth2", "net1", addrs("10.244.1.6"), nil
	second.Gateways = addrs("10.244.1.2")
	err := AddVeth(t.Context(), second, nil)
	if err == nil || !strings.Contains(err.Error(), "another route to 0.0.0.0/0 exists already on link eth0") {
		t.Errorf("got %v, want an error that names eth0", err)
	}
	if _, err := netlink.LinkByName("veth2"); !missing(err) {
		t.Errorf("the failed AddVeth left its host end behind (%v)", err)
	}
	if wrong := CheckVeth(podVeth(pod)); len(wrong) > 0 {
		t.Errorf("eth0 was changed: %q", wrong)
	}
}

func TestAddVethAgainAdoptsThePair(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	must(t, AddVeth(t.Context(), v, nil))
	before := linkOf(t, v.Host).Attrs().Index
	must(t, AddVeth(t.Context(), v, nil))
	if after := linkOf(t, v.Host).Attrs().Index; after != before {
		t.Errorf("the host end was made anew: index %d, then %d", before, after)
	}
	if wrong := CheckVeth(v); len(wrong) > 0 {
		t.Errorf("after the second AddVeth: %q", wrong)
	}
}

func TestAddVethReplacesALeftOverOfTheSameName(t *testing.T) {
	newHost(t)
	old, pod := newNetNS(t), newNetNS(t)
	must(t, AddVeth(t.Context(), podVeth(old), nil))
	v := podVeth(pod)
	must(t, AddVeth(t.Context(), v, nil))
	if wrong := CheckVeth(v); len(wrong) > 0 {
		t.Errorf("after AddVeth: %q", wrong)
	}
}

func TestANetNSThatIsGoneIsNamed(t *testing.T) {
	newHost(t)
	file := t.TempDir() + "/plain"
	must(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{"/var/run/netns/twill-never-was", file} {
		v := Veth{Host: "veth1", NetNS: path, IfName: "eth0", MAC: mac("0a:58:0a:f4:01:05"), MTU: 1450}
		if err := AddVeth(t.Context(), v, nil); !errors.Is(err, ErrNoNetNS) || !strings.Contains(err.Error(), path) {
			t.Errorf("AddVeth: got %v, want ErrNoNetNS naming %s", err, path)
		}
		if wrong := CheckVeth(v); len(wrong) != 1 || !strings.Contains(wrong[0], path) {
			t.Errorf("CheckVeth: got %q, want one sentence naming %s", wrong, path)
		}
	}
}

func TestAnInterfaceNameThatIsTakenIsNamed(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	inside(t, pod, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = v.IfName
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	})
	err := AddVeth(t.Context(), v, nil)
	if !errors.Is(err, ErrInterfaceTaken) || !strings.Contains(err.Error(), "eth0 in "+pod.Path()+" is a bridge") {
		t.Errorf("got %v, want ErrInterfaceTaken naming eth0 and the bridge", err)
	}
	if names, err := Veths(""); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestAPodWithIPv6SwitchedOffGetsItForThisInterface(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	inside(t, pod, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
	})
	v := podVeth(pod)
	must(t, AddVeth(t.Context(), v, nil))
	if wrong := CheckVeth(v); len(wrong) > 0 {
		t.Errorf("CheckVeth: %q", wrong)
	}
}

func TestAnMTUTooSmallForIPv6IsRefusedByName(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	v.MTU = 1279
	if err := AddVeth(t.Context(), v, nil); err == nil || !strings.Contains(err.Error(), "MTU of 1279 bytes is below the 1280") {
		t.Errorf("got %v", err)
	}
}

func TestDeleteOfAMissingVethIsNoError(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	must(t, AddVeth(t.Context(), v, nil))
	must(t, DeleteVeths(v.Host))
	if wrong := CheckVeth(v); len(wrong) != 2 {
		t.Errorf("after the delete CheckVeth says %q, want one sentence for each end", wrong)
	}
	must(t, DeleteVeths(v.Host))
}

func TestCheckVethFindsEachDamage(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	in := func(f func(netlink.Link) error) func() error {
		return func() error {
			return pod.Do(func(ns.NetNS) error {
				l, err := netlink.LinkByName(v.IfName)
				if err != nil {
					return err
				}
				return f(l)
			})
		}
	}
	address := func(i int) *netlink.Addr { return &netlink.Addr{IPNet: toIPNet(single(v.Addresses[i]))} }
	eth0 := "eth0 in " + pod.Path() + " "
	for _, c := range []struct {
		damage string
		do     func() error
		want   []string
	}{
		{"pod end down", in(netlink.LinkSetDown), []string{eth0 + "is down", eth0 + "lacks route 10.244.1.1/32"}},
		{"other MAC", in(func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac("0a:58:0a:f4:01:99")) }),
			[]string{eth0 + "has MAC 0a:58:0a:f4:01:99, not 0a:58:0a:f4:01:05"}},
		{"other MTU", in(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) }), []string{eth0 + "has an MTU of 1400, not 1450"}},
		{"no IPv4 address", in(func(l netlink.Link) error { return netlink.AddrDel(l, address(0)) }), []string{eth0 + "lacks address 10.244.1.5/32"}},
		{"no IPv6 address", in(func(l netlink.Link) error { return netlink.AddrDel(l, address(1)) }), []string{eth0 + "lacks address 2001:db8:244:1::5/128"}},
		{"no default route", in(func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(everything(v.Gateways[0]))})
		}), []string{eth0 + "lacks route 0.0.0.0/0 via 10.244.1.1"}},
		{"no IPv6 default route", in(func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(everything(v.Gateways[1]))})
		}), []string{eth0 + "lacks route ::/0 via 2001:db8:244:1::1"}},
		{"no further route", in(func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: toIPNet(v.Routes[0])})
		}), []string{eth0 + "lacks route 198.18.0.0/15 via 10.244.1.1"}},
		{"no neighbour", in(func(l netlink.Link) error {
			return netlink.NeighDel(neighbour{address: v.Gateways[0]}.request(l.Attrs().Index))
		}),
			[]string{eth0 + "lacks the permanent neighbour entry 10.244.1.1 at 0a:58:00:00:00:01"}},
		{"neighbour not permanent", in(func(l netlink.Link) error {
			n := neighbour{v.Gateways[1], v.RouterMAC}.request(l.Attrs().Index)
			n.State = netlink.NUD_STALE
			return netlink.NeighSet(n)
		}), []string{eth0 + "lacks the permanent neighbour entry 2001:db8:244:1::1 at 0a:58:00:00:00:01"}},
		{"pod end with offload", in(func(netlink.Link) error { return offload(v.IfName) }), []string{eth0 + "has tx-checksum-ip-generic on"}},
		{"pod end renamed", in(func(l netlink.Link) error {
			return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "eth9"))
		}), []string{eth0 + "cannot be found: Link not found"}},
		{"host end down", func() error { return netlink.LinkSetDown(linkOf(t, v.Host)) }, []string{"host end veth0a1b2c is down"}},
		{"host end gone", func() error { return DeleteVeths(v.Host) }, []string{"host end veth0a1b2c: Link not found"}},
		{"host end of another", func() error {
			l := linkOf(t, v.Host)
			return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "elsewhere"),
				AddVeth(t.Context(), Veth{Host: v.Host, NetNS: pod.Path(), IfName: "other", MAC: mac("0a:58:0a:f4:01:77"), MTU: 1450}, nil))
		}, []string{"host end veth0a1b2c is not the other end of eth0"}},
	} {
		must(t, AddVeth(t.Context(), v, nil))
		if wrong := CheckVeth(v); len(wrong) > 0 {
			t.Fatalf("before %s: %q", c.damage, wrong)
		}
		must(t, c.do())
		wrong := CheckVeth(v)
		for _, want := range c.want {
			if !slices.Contains(wrong, want) {
				t.Errorf("%s: CheckVeth says %q, want %q in it", c.damage, wrong, want)
			}
		}
		if strings.HasPrefix(c.damage, "no ") && c.damage != "no IPv6 address" && c.damage != "no IPv4 address" && len(wrong) != len(c.want) {
			t.Errorf("%s: CheckVeth says %q, want only %q", c.damage, wrong, c.want)
		}
		for _, name := range []string{v.Host, "elsewhere"} {
			must(t, DeleteVeths(name))
		}
	}
}

// offload turns on what the userspace datapath cannot do with.
func offload(link string) error {
	return withEthtool(func(tool *ethtool.Ethtool) error {
		return tool.Change(link, map[string]bool{"tx-checksum-ip-generic": true})
	})
}

func TestAddVethRepairsAPairThatLostSomething(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	must(t, AddVeth(t.Context(), v, nil))
	inside(t, pod, func() error {
		l, err := netlink.LinkByName("eth0")
		return errors.Join(err, netlink.LinkSetDown(l), netlink.LinkSetMTU(l, 1300))
	})
	must(t, AddVeth(t.Context(), v, nil))
	if wrong := CheckVeth(v); len(wrong) > 0 {
		t.Errorf("after AddVeth: %q", wrong)
	}
}

func TestFiftyPodsAtOnce(t *testing.T) {
	host := newHost(t)
	const pods = 50
	all := make([]Veth, pods)
	for i := range all {
		v := podVeth(newNetNS(t))
		v.Host = fmt.Sprintf("veth-p%d", i)
		v.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)})}
		all[i] = v
	}
	errs := make([]error, pods)
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() {
			errs[i] = host.Do(func(ns.NetNS) error { return AddVeth(t.Context(), v, nil) })
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	for _, v := range all {
		if wrong := CheckVeth(v); len(wrong) > 0 {
			t.Errorf("%s: %q", v.Host, wrong)
		}
	}
	names, err := Veths("veth-p")
	must(t, err)
	if len(names) != pods {
		t.Errorf("Veths lists %d, want %d", len(names), pods)
	}
}

func TestPairsThatAreDeletedTogetherTakeNoOtherLinkWithThem(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	hosts := []string{"missing"}
	for i := range 4 {
		v := podVeth(pod)
		v.Host, v.IfName, v.Addresses, v.Gateways, v.Routes = fmt.Sprint("veth-p", i), fmt.Sprint("eth", i), nil, nil, nil
		must(t, AddVeth(t.Context(), v, nil))
		if i > 0 {
			hosts = append(hosts, v.Host)
		}
	}
	foreign := addBridge(t, "foreign")
	must(t, netlink.LinkSetGroup(foreign, leavingGroup))
	must(t, DeleteVeths(hosts[:3]...))
	names, err := Veths("veth-p")
	must(t, err)
	if want := []string{"veth-p0", "veth-p3"}; !slices.Equal(names, want) {
		t.Errorf("beside a foreign link of the same group: left are %q, want %q", names, want)
	}
	linkOf(t, "foreign")
	must(t, netlink.LinkDel(foreign))
	must(t, DeleteVeths("veth-p0", "veth-p3"))
	if names, err = Veths("veth-p"); err != nil || len(names) > 0 {
		t.Errorf("left are %q, %v", names, err)
	}
}

func TestVethsListsOnlyVethsOfThePrefix(t *testing.T) {
	newHost(t)
	addBridge(t, "veth-bridge")
	must(t, AddVeth(t.Context(), podVeth(newNetNS(t)), nil))
	other := podVeth(newNetNS(t))
	other.Host = "eth7"
	must(t, AddVeth(t.Context(), other, nil))
	names, err := Veths("veth")
	must(t, err)
	if !slices.Equal(names, []string{"veth0a1b2c"}) {
		t.Errorf("got %q, want only veth0a1b2c", names)
	}
}

func BenchmarkAddVeth(b *testing.B) {
	space, err := testutils.NewNS()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { space.Close(); testutils.UnmountNS(space) }()
	v := podVeth(space)
	err = space.Do(func(ns.NetNS) error {
		for range b.N {
			pod, err := testutils.NewNS()
			if err != nil {
				return err
			}
			v.NetNS = pod.Path()
			b.StartTimer()
			err = AddVeth(b.Context(), v, nil)
			b.StopTimer()
			if err := errors.Join(err, DeleteVeths(v.Host), pod.Close(), testutils.UnmountNS(pod)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
