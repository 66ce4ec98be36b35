package source

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/twill-net/twill/flows"
)

// told is what a Joiner makes of objects, as text.
func told(t testing.TB, j *Joiner, s *flows.Services) string {
	t.Helper()
	text, err := json.MarshalIndent([]any{s, s.HostRoutes(), s.Host.NodePorts(), s.Host.Unserved(), j.HealthChecked()}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func anyService(r *rand.Rand, name string) *ServiceObject {
	s := &ServiceObject{Namespace: "shop", Name: name, ExternalLocal: r.IntN(2) == 0, HealthCheckNodePort: uint16(31000 * r.IntN(2))}
	if r.IntN(4) > 0 { // else it is headless
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{198, 19, 0, byte(r.IntN(9))})}
	}
	for i := range r.IntN(3) {
		s.Ports = append(s.Ports, ServiceObjectPort{Name: fmt.Sprint("p", i), Protocol: []string{"tcp", "udp"}[r.IntN(2)], Port: uint16(80 + i), NodePort: uint16(30000 * r.IntN(2))})
	}
	return s
}

func anySlice(r *rand.Rand, name string) *SliceObject {
	s := &SliceObject{Namespace: "shop", Name: name, Service: fmt.Sprint("s", r.IntN(6))}
	if r.IntN(6) == 0 {
		s.Service = "" // of nobody
	}
	for i := range 2 {
		s.Ports = append(s.Ports, SlicePort{Name: fmt.Sprint("p", i), Protocol: []string{"tcp", "udp"}[r.IntN(2)], Port: uint16(8080 + i)})
	}
	for range r.IntN(4) {
		s.Endpoints = append(s.Endpoints, SliceEndpoint{Address: netip.AddrFrom4([4]byte{198, 18, 1, byte(r.IntN(9))}), Ready: r.IntN(2) == 0, Serving: true,
			Node: fmt.Sprint("n", r.IntN(3))})
	}
	return s
}

func TestWhatObjectsOfServicesSayDoesNotDependOnTheOrderInWhichTheyCame(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		s, j := newStore(silent(), nil), NewJoiner(nil)
		now := map[Key]any{}
		for step := range 150 {
			var key Key
			var value any
			if r.IntN(2) == 0 {
				key = Key{Kind: kindService, Namespace: "shop", Name: fmt.Sprint("s", r.IntN(6))}
				value = anyService(r, key.Name)
			} else {
				key = Key{Kind: kindSlice, Namespace: "shop", Name: fmt.Sprint("e", r.IntN(8))}
				value = anySlice(r, key.Name)
			}
			if r.IntN(3) == 0 {
				delete(now, key)
				s.set(key, entry{})
			} else {
				now[key] = value
				s.set(key, entry{value: value})
			}
			if r.IntN(3) > 0 {
				continue // several changes before the next look
			}
			kinds := s.Services()
			got := j.Join(kinds)
			if got != j.Join(s.Services()) {
				t.Fatal("another pointer though nothing has changed")
			}
			fresh, other := newStore(silent(), nil), NewJoiner(nil)
			keys := slices.Collect(maps.Keys(now))
			r.Shuffle(len(keys), func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
			for _, key := range keys {
				fresh.set(key, entry{value: now[key]})
			}
			if g, w := told(t, j, got), told(t, other, other.Join(fresh.Services())); g != w {
				t.Fatalf("seed %d, step %d: after all changes\n%s\nand at once\n%s", seed, step, g, w)
			}
		}
	}
}

func TestOnlyServicesThatALoadBalancerAsksAboutAreAnswered(t *testing.T) {
	s, j := newStore(silent(), nil), NewJoiner(nil)
	for name, change := range map[string]func(*ServiceObject){
		"web": func(*ServiceObject) {}, "everywhere": func(o *ServiceObject) { o.ExternalLocal = false },
		"not-asked": func(o *ServiceObject) { o.HealthCheckNodePort = 0 }, "not-ours": func(o *ServiceObject) { o.ClusterIPs = nil },
	} {
		o := &ServiceObject{Namespace: "shop", Name: name, ExternalLocal: true, HealthCheckNodePort: 31000, ClusterIPs: []netip.Addr{netip.MustParseAddr("198.19.0.10")}}
		change(o)
		s.set(Key{Kind: kindService, Namespace: "shop", Name: name}, entry{value: o})
	}
	j.Join(s.Services())
	if list := j.HealthChecked(); len(list) != 1 || list[0].Name != "web" {
		t.Errorf("got %+v, want web alone", list)
	}
}

// BenchmarkOneEndpointReplaced is from an EndpointSlice that has changed to the bundle for Open vSwitch, among few
// Services and among many: what it costs must not depend on how many there are.
func BenchmarkOneEndpointReplaced(b *testing.B) {
	for _, services := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s, j := newStore(silent(), nil), NewJoiner(nil)
			slice := func(i, shift int) {
				name := fmt.Sprint("s", i)
				s.set(Key{Kind: kindSlice, Namespace: "shop", Name: name + "-e"}, entry{value: &SliceObject{
					Namespace: "shop", Name: name + "-e", Service: name, Ports: []SlicePort{{Protocol: "tcp", Port: 8080}},
					Endpoints: []SliceEndpoint{
						{Address: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Ready: true, Serving: true},
						{Address: netip.AddrFrom4([4]byte{198, byte(20 + shift), byte(i >> 8), byte(i)}), Ready: true, Serving: true},
					},
				}})
			}
			for i := range services {
				name := fmt.Sprint("s", i)
				s.set(Key{Kind: kindService, Namespace: "shop", Name: name}, entry{value: &ServiceObject{
					Namespace: "shop", Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})},
					Ports: []ServiceObjectPort{{Protocol: "tcp", Port: 80, NodePort: uint16(30000 + i)}},
				}})
				slice(i, 0)
			}
			node := flows.Node{Name: "alpha", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}
			desired := flows.NewDesired()
			var before *flows.World
			look := func() flows.Delta {
				now := &flows.World{Node: node, MTU: 1450, Tunnel: flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 1}, Services: j.Join(s.Services())}
				wanted := map[flows.Owner][]flows.Flow{}
				for _, o := range flows.Changed(before, now) {
					fs, err := flows.Compile(now, o)
					if err != nil {
						b.Fatal(err)
					}
					wanted[o] = fs
				}
				delta, err := desired.Replace(wanted)
				if err != nil {
					b.Fatal(err)
				}
				before = now
				return delta
			}
			look()
			n := 0
			for b.Loop() {
				n++
				slice(services/2, 1+n%2)
				if d := look(); len(d.AddGroups) != 1 || len(d.Add) != 2 || len(d.Delete) != 2 || d.Bundle() == "" {
					b.Fatalf("%d groups, %d flows added, %d deleted; want 1, 2 and 2", len(d.AddGroups), len(d.Add), len(d.Delete))
				}
			}
		})
	}
}
