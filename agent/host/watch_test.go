package host

import (
	"context"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watch starts Watch in the namespace of the test and returns its kicks once it listens. The channel
// closes when Watch has returned.
func watch(t *testing.T) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	kicks := make(chan string, 1000)
	w, err := newWatcher(nil, func(cause string) { kicks <- cause })
	must(t, err)
	ended := make(chan error, 1)
	go func() {
		defer close(kicks)
		ended <- w.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return kicks
}

func TestWatchTellsEachChangeThatMayConcernUs(t *testing.T) {
	g := newGateway(t)
	ensure(t, g)
	n := testTable()
	ensure(t, n)
	link := linkOf(t, "twill0")
	index := link.Attrs().Index
	kicks := watch(t)
	r := route{to: g.Routes[0], via: nextHop(g.Addresses[0]), source: g.Addresses[0], onLink: true}
	r6 := route{to: g.Routes[1], via: nextHop(g.Addresses[1]), source: g.Addresses[1]}
	for _, c := range []struct {
		do   func() error
		want string
	}{
		{func() error { return netlink.RouteDel(r.request(index, RouteProtocol)) }, "route to 10.244.0.0/16 by twill0 deleted"},
		{func() error { return netlink.RouteDel(r6.request(index, RouteProtocol)) }, "route to 2001:db8:244::/48 by twill0 deleted"},
		{func() error { return r.put(mustSocket(t), index, RouteProtocol) }, "route to 10.244.0.0/16 by twill0 set"},
		{func() error { return netlink.NeighDel(neighbour{address: nextHop(g.Addresses[0])}.request(index)) },
			"neighbour entry of 169.254.77.1 on twill0 deleted"},
		{func() error { return netlink.NeighSet(neighbour{nextHop(g.Addresses[1]), g.MAC}.request(index)) },
			"neighbour entry of fe80::77:1 on twill0 set"},
		{func() error { return netlink.AddrAdd(link, addressRequest(addrs("203.0.113.5")[0])) }, "address on twill0 set"},
		{func() error { return netlink.LinkSetMTU(link, 1400) }, "link twill0 changed"},
		{func() error { return netlink.LinkSetDown(link) }, "link twill0 went down"},
		{func() error { return n.Remove(t.Context()) }, "nftables table inet twill changed"},
		{func() error { return netlink.LinkDel(link) }, "link twill0 deleted"},
	} {
		must(t, c.do())
		for cause := range kicks {
			if cause == c.want {
				break
			}
			t.Logf("waiting for %q: %q", c.want, cause)
		}
	}
}

func TestAPodThatComesUpIsNoCauseButOneThatIsDeletedIs(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	kicks := watch(t)
	must(t, AddVeth(t.Context(), v, nil))
	must(t, DeleteVeths(v.Host))
	for _, want := range []string{"link veth0a1b2c went down", "link veth0a1b2c deleted"} {
		if cause := <-kicks; cause != want {
			t.Errorf("kicked for %q, want %q", cause, want)
		}
	}
}

func TestThePodLinksThatTheCallerKnowsAreNoCause(t *testing.T) {
	newHost(t)
	v := podVeth(newNetNS(t))
	kicks := make(chan string, 100)
	w, err := newWatcher(func(link string) bool { return link == v.Host }, func(cause string) { kicks <- cause })
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.run(ctx) }()
	must(t, AddVeth(t.Context(), v, nil))
	must(t, DeleteVeths(v.Host))
	addBridge(t, "last")
	if cause := <-kicks; cause != "link last added" {
		t.Errorf("kicked for %q", cause)
	}
	cancel()
	must(t, <-done)
}

func TestOrdinaryNeighboursAreNoCause(t *testing.T) {
	newHost(t)
	l := addBridge(t, "uplink", "198.51.100.1/24")
	kicks := watch(t)
	must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_REACHABLE,
		IP: net.ParseIP("198.51.100.7"), HardwareAddr: mac("0a:58:00:00:00:07")}))
	must(t, netlink.LinkDel(l))
	if cause := <-kicks; cause == "neighbour entry of 198.51.100.7 on uplink set" {
		t.Errorf("kicked for %q", cause)
	}
}

func TestWatchReturnsNilWhenItsContextEndsAndAnErrorWhenASocketBreaks(t *testing.T) {
	newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, nil, func(string) {}); err != nil {
		t.Errorf("after the end of its context: %v", err)
	}
	w, err := newWatcher(nil, func(string) {})
	must(t, err)
	w.routes.Close()
	if err := w.run(t.Context()); err == nil {
		t.Error("with a broken subscription: no error")
	}
}
