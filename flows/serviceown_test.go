package flows_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/flows"
)

func parsed(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// TestAHostsOwnAddressesHaveStandInsOfTheirOwn: each another one within the range of its family, while there is room.
func TestAHostsOwnAddressesHaveStandInsOfTheirOwn(t *testing.T) {
	var own []netip.Addr
	for i := range 130 {
		own = append(own, netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", i+1)))
	}
	for i := range 128 {
		own = append(own, netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)))
	}
	taken, without := map[netip.Addr]bool{}, 0
	got := flows.StandIns(own)
	for _, a := range own {
		s, ok := got[a]
		switch {
		case !ok:
			without++
		case taken[s], s.Is4() != a.Is4(), !flows.OwnRange(a.Is4()).Contains(s):
			t.Errorf("%s has the stand-in %s", a, s)
		}
		taken[s] = true
	}
	if without != 2 {
		t.Errorf("%d of 130 IPv4 addresses and 128 IPv6 ones have no stand-in, want 2", without)
	}
	w := &flows.World{Own: own[:3]}
	for _, a := range own[:4] {
		s, ok := w.StandIn(a)
		if back := w.StandsFor(s); ok != (a != own[3]) || ok && back != a {
			t.Errorf("%s has the stand-in %s (%v), which stands for %s", a, s, ok, back)
		}
	}
	if free := netip.MustParseAddr("169.254.77.2"); w.StandsFor(free) != free {
		t.Errorf("%s stands for %s", free, w.StandsFor(free))
	}
}

// TestOwnAddressesAreThoseAtWhichServicesAreServed: external ones and load balancers', not ClusterIPs, each once.
func TestOwnAddressesAreThoseAtWhichServicesAreServed(t *testing.T) {
	s := readScenario(t, "testdata/services-own-address.txtar").world.Services
	got := s.Own(parsed("2001:db8:f::1", "198.51.100.200", "192.0.2.1", "198.19.0.10", "198.51.100.1", "198.51.100.1"))
	if want := parsed("198.51.100.1", "198.51.100.200", "2001:db8:f::1"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var frontends []string
	standIns := flows.StandIns(got)
	for _, f := range s.OwnFrontends(got) {
		frontends = append(frontends, f.String())
		if f.StandIn != standIns[f.At.Addr()] {
			t.Errorf("%s has the stand-in %s", f, f.StandIn)
		}
	}
	if want := []string{"tcp 198.51.100.1:80", "udp 198.51.100.200:53", "tcp [2001:db8:f::1]:80"}; !slices.Equal(frontends, want) {
		t.Errorf("got %v, want %v", frontends, want)
	}
}

// TestAnotherPortAtAnAddressIsNewsForTheHost: it looks at Services only when what it has to know of them is another value.
func TestAnotherPortAtAnAddressIsNewsForTheHost(t *testing.T) {
	own := parsed("203.0.113.7")
	port := func(name string, number uint16) []*flows.ServicePort {
		return []*flows.ServicePort{{Owner: flows.ServiceOwner("default", name, "80", "tcp"), Protocol: "tcp", Port: number, ClusterIPs: parsed("198.19.0.1"), External: own}}
	}
	x := flows.NewServiceIndex(nil)
	x.Set("default/a", port("a", 80))
	before := x.Services()
	x.Set("default/b", port("b", 81))
	after := x.Services()
	if before.Host == after.Host || len(before.OwnFrontends(own)) != 1 || len(after.OwnFrontends(own)) != 2 {
		t.Errorf("%v, then %v", before.OwnFrontends(own), after.OwnFrontends(own))
	}
	x.Set("default/b", nil)
	if got := x.Services().OwnFrontends(own); len(got) != 1 || got[0].At.Port() != 80 {
		t.Errorf("and then %v", got)
	}
}

// TestAHostWhoseAddressesChangeHasTheFlowsOfAFreshStart: whatever addresses come and go, all owners are told whose flows
// differ.
func TestAHostWhoseAddressesChangeHasTheFlowsOfAFreshStart(t *testing.T) {
	all := parsed("198.51.100.1", "198.51.100.2", "198.51.100.200", "2001:db8:f::1")
	r := rand.New(rand.NewPCG(1, 3))
	old, seen := readScenario(t, "testdata/services-own-address.txtar").world, 0
	for range 60 {
		next := *old
		next.Own = slices.DeleteFunc(slices.Clone(all), func(netip.Addr) bool { return r.IntN(2) == 0 })
		changed := flows.Changed(old, &next)
		for _, o := range append(old.Owners(), next.Owners()...) {
			before, _ := flows.Compile(old, o)
			after, _ := flows.Compile(&next, o)
			if same := cmp.Equal(before, after); !same {
				seen++
				if !slices.Contains(changed, o) {
					t.Fatalf("from %v to %v: %s has other flows now, but is not among %v", old.Own, next.Own, o, changed)
				}
			}
		}
		old = &next
	}
	if seen < 100 {
		t.Errorf("flows changed %d times", seen)
	}
}

// TestAConnectionToAnOwnAddressEndsWithItsService: the tracker of the bridge knows it by the stand-in.
func TestAConnectionToAnOwnAddressEndsWithItsService(t *testing.T) {
	w := readScenario(t, "testdata/services-own-address.txtar").world
	s, _ := w.StandIn(netip.MustParseAddr("198.51.100.1"))
	to := func(port uint16) flows.Connection {
		return flows.Connection{Frontend: flows.Frontend{Protocol: "tcp", At: netip.AddrPortFrom(s, port)}, Endpoint: netip.MustParseAddrPort("198.18.2.9:8080")}
	}
	alive := func(netip.Addr) bool { return true }
	if c := flows.NewConnections(w); c.Ended(to(80), alive) || !c.Ended(to(81), alive) {
		t.Error("a connection goes on while its Service is there")
	}
	w.Own = nil
	if !flows.NewConnections(w).Ended(to(80), alive) {
		t.Error("a connection to an address that the host has no more goes on")
	}
}
