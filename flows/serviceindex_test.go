package flows

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// anyPort is one of few possible ports of the i-th Service: Services share addresses, endpoints, node ports and frontends.
func anyPort(r *rand.Rand, i int) *ServicePort {
	v4 := func(a, b int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(a), byte(b)}) }
	protocol := []string{"tcp", "udp", "sctp"}[r.IntN(3)]
	p := &ServicePort{
		Owner: ServiceOwner("shop", fmt.Sprint("s", i), "web", protocol), Protocol: protocol, Port: uint16(80 + r.IntN(3)),
		ClusterIPs:    []netip.Addr{v4(200, r.IntN(6))},
		ExternalLocal: r.IntN(2) == 0, Affinity: 10 * r.IntN(2),
	}
	if r.IntN(2) == 0 {
		p.ClusterIPs = append(p.ClusterIPs, netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::1", 1<<r.IntN(4))))
	}
	if r.IntN(2) == 0 {
		p.NodePort = uint16(30000 + r.IntN(3))
	}
	for range r.IntN(3) {
		p.External = append(p.External, v4(100, r.IntN(6)))
		p.LoadBalancer = append(p.LoadBalancer, v4(101, r.IntN(6)))
	}
	n := r.IntN(3)
	if r.IntN(8) == 0 {
		n = 70 + r.IntN(60) // in parts
	}
	for range n {
		e := Endpoint{Address: v4(1+r.IntN(3), r.IntN(60)), Port: 8080, Ready: r.IntN(2) == 0}
		if r.IntN(4) == 0 {
			e.Address = v4(200, r.IntN(6)) // it may be served, by this Service or another, and then is no endpoint
		}
		p.Endpoints = append(p.Endpoints, e)
	}
	p.Endpoints = SortEndpoints(p.Endpoints)
	return p
}

// everything is all that Services say, as text.
func everything(t testing.TB, s *Services) string {
	t.Helper()
	ports := map[Owner]string{}
	for _, p := range s.All() {
		var groups []string
		for _, k := range p.groupKeys() {
			groups = append(groups, fmt.Sprint(k, p.groups[k]))
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		ports[p.Owner] = fmt.Sprint(string(text), groups, len(p.groups))
	}
	frontends := maps.Collect(s.frontends.All())
	text, err := json.MarshalIndent([]any{ports, s.addresses.Keys(), s.endpoints.Keys(), frontends, s.HostRoutes(), s.Host.NodePorts(), s.Host.Unserved(),
		s.Ports.Len(), s.addresses.Len(), s.endpoints.Len(), s.frontends.Len()}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// crowded makes the numbers of groups collide: 7 in 8 of few are taken.
func crowded(x *ServiceIndex) { x.numbers = newNumbering(400) }

func TestWhatServicesComeToDependsOnWhatTheySayNotOnThePath(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		cidrs := []netip.Prefix{netip.MustParsePrefix("198.18.200.0/30")}
		x := NewServiceIndex(cidrs)
		crowded(x)
		now := map[string][]*ServicePort{}
		slots := func() (n int) {
			for _, list := range now {
				for _, p := range list {
					n += len(p.slots())
				}
			}
			return n
		}
		collided := false
		for step := range 120 {
			i := r.IntN(30)
			name := fmt.Sprint("s", i)
			var list []*ServicePort
			for range r.IntN(4) {
				if p := anyPort(r, i); !slices.ContainsFunc(list, func(o *ServicePort) bool { return o.Owner == p.Owner }) {
					list = append(list, p)
				}
			}
			was := now[name]
			now[name] = list
			if slots() > 350 {
				now[name] = was
				continue
			}
			x.Set(name, list)
			if r.IntN(3) > 0 {
				continue // several changes before the next look
			}
			got := x.Services()
			if got != x.Services() {
				t.Fatal("another pointer though nothing has changed")
			}
			fresh := NewServiceIndex(cidrs)
			crowded(fresh)
			names := slices.Collect(maps.Keys(now))
			r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, n := range names {
				fresh.Set(n, now[n])
			}
			if g, w := everything(t, got), everything(t, fresh.Services()); g != w {
				t.Fatalf("seed %d, step %d: %s\nafter all changes, and at once:\n%s", seed, step, g, w)
			}
			for s, id := range x.numbers.of {
				collided = collided || x.numbers.home(s) != id
			}
		}
		if !collided {
			t.Errorf("seed %d: no two groups wanted the same number", seed)
		}
	}
}

// TestNumbersAreThoseOfOnePassByPrecedence: the definition that numbering keeps up step by step.
func TestNumbersAreThoseOfOnePassByPrecedence(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	n := newNumbering(64)
	there := map[slot]bool{}
	for step := range 5000 {
		s := slot{Owner(fmt.Sprint("service/shop/s", r.IntN(20))), groupKey{r.IntN(2) == 0, r.IntN(2) == 0}, r.IntN(2)}
		before := maps.Clone(n.of)
		moved := map[Owner]bool{s.owner: true}
		if there[s] {
			delete(there, s)
			n.remove(s, func(o Owner) { moved[o] = true })
		} else if len(there) < 60 {
			there[s] = true
			n.add(s, func(o Owner) { moved[o] = true })
		}
		want, taken := map[slot]GroupID{}, map[GroupID]bool{}
		for _, s := range slices.SortedFunc(maps.Keys(there), slot.compare) {
			id := n.home(s)
			for taken[id] {
				id = n.next(id)
			}
			want[s], taken[id] = id, true
		}
		if !maps.Equal(n.of, want) || len(n.at) != len(want) {
			t.Fatalf("step %d: %v, want %v", step, n.of, want)
		}
		for s, id := range n.of {
			if id != before[s] && !moved[s.owner] {
				t.Fatalf("step %d: nobody was told that %v has got another number", step, s)
			}
		}
	}
}

func TestAServiceThatGoesAndComesBackLeavesNothingBehind(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	x := NewServiceIndex(nil)
	for i := range 50 {
		x.Set(fmt.Sprint("s", i), []*ServicePort{anyPort(r, i)})
	}
	before := x.Services()
	extra := anyPort(r, 99)
	x.Set("s99", []*ServicePort{extra})
	x.Services()
	x.Set("s99", nil)
	if g, w := everything(t, x.Services()), everything(t, before); g != w {
		t.Errorf("%s\nwant\n%s", g, w)
	}
	for i := range 50 {
		x.Set(fmt.Sprint("s", i), nil)
	}
	x.Services()
	if n := len(x.ports) + len(x.of) + len(x.numbers.at) + len(x.numbers.of) + len(x.addresses.n) + len(x.endpoints.n) + len(x.external.n) +
		len(x.nodePorts.n) + len(x.unserved.n) + len(x.frontends.n); n != 0 {
		t.Errorf("%d entries are left of Services that are gone", n)
	}
}

func TestTheSmallestRangeAroundAddresses(t *testing.T) {
	for _, c := range []struct{ addresses, want string }{
		{"", "invalid Prefix"}, {"198.19.0.10", "198.19.0.10/32"}, {"198.19.0.10 198.19.0.11", "198.19.0.10/31"}, {"198.19.0.1 198.19.255.1", "198.19.0.0/16"},
		{"0.0.0.1 128.0.0.1", "0.0.0.0/0"}, {"2001:db8::1 2001:db8::2", "2001:db8::/126"}, {"198.19.0.10 198.19.0.10", "198.19.0.10/32"},
	} {
		var s span
		add := func(text string, by int) {
			if text != "" {
				s.add(netip.MustParseAddr(text), by)
			}
		}
		first, second, _ := strings.Cut(c.addresses, " ")
		add("255.255.255.255", 1)
		add("255.255.255.255", -1)
		add(first, 1)
		add(second, 1)
		if got := s.prefix().String(); got != c.want {
			t.Errorf("around %q is %s, want %s", c.addresses, got, c.want)
		}
	}
}
