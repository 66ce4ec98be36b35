package flows

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var compareNetip = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var comparePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// claimant makes a Node that was created in second age; a claim with a slash is a podCIDR, others are
// addresses.
func claimant(name string, age int, claims ...string) Node {
	n := Node{Name: name, UID: "uid-" + name, Created: time.Unix(int64(age), 0)}
	for _, c := range claims {
		if strings.Contains(c, "/") {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
		} else {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(c))
		}
	}
	return n
}

// verdict is the text of what Admit decides: what each Node holds, then who was refused what.
func verdict(nodes []Node) string {
	admitted, refused := Admit(nodes)
	var names []string
	for name := range admitted {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		n := admitted[name]
		fmt.Fprintln(&b, name, n.PodCIDRs, n.Addresses)
	}
	for _, r := range refused {
		fmt.Fprintf(&b, "%s: %s is held by %s\n", r.Node, r.What, r.Holder)
	}
	return b.String()
}

func TestTheElderNodeKeepsWhatTwoNodesClaim(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes []Node
		want  string
	}{{
		"nothing shared",
		[]Node{claimant("a", 1, "10.244.0.0/24", "2001:db8:0:1::/64", "198.51.100.1"), claimant("b", 2, "10.244.1.0/24", "2001:db8:0:2::/64", "198.51.100.2")},
		"a [10.244.0.0/24 2001:db8:0:1::/64] [198.51.100.1]\nb [10.244.1.0/24 2001:db8:0:2::/64] [198.51.100.2]\n",
	}, {
		"equal podCIDR, the other family stays",
		[]Node{claimant("a", 2, "10.244.0.0/24", "2001:db8:0:1::/64", "198.51.100.1"), claimant("b", 1, "10.244.0.0/24", "2001:db8:0:2::/64", "198.51.100.2")},
		"a [2001:db8:0:1::/64] [198.51.100.1]\nb [10.244.0.0/24 2001:db8:0:2::/64] [198.51.100.2]\na: podCIDR 10.244.0.0/24 is held by b\n",
	}, {
		"the order of the families is the object's",
		[]Node{claimant("a", 1, "2001:db8:0:1::/64", "10.244.0.0/24")},
		"a [2001:db8:0:1::/64 10.244.0.0/24] []\n",
	}, {
		"a range around that of an elder",
		[]Node{claimant("wide", 2, "10.244.0.0/16"), claimant("old", 1, "10.244.7.0/24"), claimant("older", 0, "10.244.9.0/24")},
		"old [10.244.7.0/24] []\nolder [10.244.9.0/24] []\nwide [] []\nwide: podCIDR 10.244.0.0/16 is held by older\n",
	}, {
		"a range within that of an elder",
		[]Node{claimant("wide", 1, "10.244.0.0/16"), claimant("young", 2, "10.244.7.0/24")},
		"wide [10.244.0.0/16] []\nyoung [] []\nyoung: podCIDR 10.244.7.0/24 is held by wide\n",
	}, {
		"a refused claim blocks nobody",
		[]Node{claimant("a", 1, "10.244.1.0/24"), claimant("b", 2, "10.244.0.0/16"), claimant("c", 3, "10.244.2.0/24")},
		"a [10.244.1.0/24] []\nb [] []\nc [10.244.2.0/24] []\nb: podCIDR 10.244.0.0/16 is held by a\n",
	}, {
		"one address, names decide in the same second",
		[]Node{claimant("b", 1, "198.51.100.1", "2001:db8::b"), claimant("a", 1, "198.51.100.1")},
		"a [] [198.51.100.1]\nb [] [2001:db8::b]\nb: address 198.51.100.1 is held by a\n",
	}, {
		"the same claim twice in one Node",
		[]Node{claimant("a", 1, "10.244.0.0/24", "10.244.0.0/24", "198.51.100.1", "198.51.100.1")},
		"a [10.244.0.0/24] [198.51.100.1]\n",
	}, {
		"two Nodes of one name",
		[]Node{claimant("a", 2, "10.244.0.0/24"), claimant("a", 1, "10.244.1.0/24")},
		"a [10.244.1.0/24] []\na: name a is held by a\n",
	}} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, verdict(c.nodes)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestARefusalNamesBothNodesAndTheRemedy(t *testing.T) {
	_, refused := Admit([]Node{
		claimant("worker-1", 1, "10.244.0.0/16", "198.51.100.1"),
		claimant("worker-2", 2, "10.244.1.0/24", "198.51.100.1"),
	})
	want := []Refusal{{
		Node: "worker-2", Holder: "worker-1", What: "address 198.51.100.1",
		Reason: "Nodes worker-2 and worker-1 both have the InternalIP 198.51.100.1, and worker-1 is the elder and keeps it: " +
			"give one of them another address (kubelet --node-ip), or delete Node worker-1 if that machine is gone.",
	}, {
		Node: "worker-2", Holder: "worker-1", What: "podCIDR 10.244.1.0/24",
		Reason: "podCIDR 10.244.1.0/24 of Node worker-2 overlaps podCIDR 10.244.0.0/16 of Node worker-1, which is the elder and keeps it: " +
			"delete Node worker-1 if that machine is gone, or delete Node worker-2 and let its kubelet register it anew, for another podCIDR.",
	}}
	if d := cmp.Diff(want, refused); d != "" {
		t.Error(d)
	}
}

func TestRemovingTheHolderHealsTheRefusedNode(t *testing.T) {
	holder, loser := claimant("a", 1, "10.244.0.0/24", "198.51.100.1"), claimant("b", 2, "10.244.0.0/24", "198.51.100.1")
	if _, refused := Admit([]Node{holder, loser}); len(refused) != 2 {
		t.Fatalf("refused = %v, want podCIDR and address of b", refused)
	}
	admitted, refused := Admit([]Node{loser})
	if d := cmp.Diff(map[string]Node{"b": loser}, admitted, compareNetip, comparePrefix); d != "" || refused != nil {
		t.Errorf("refused = %v, admitted differs:\n%s", refused, d)
	}
}

// crowd is a small cluster in which nearly everything collides with something.
func crowd(r *rand.Rand) []Node {
	var nodes []Node
	for i := range 1 + r.IntN(12) {
		n := Node{Name: fmt.Sprint("n", i), Created: time.Unix(int64(r.IntN(3)), 0)}
		if r.IntN(4) > 0 {
			a := netip.AddrFrom4([4]byte{10, 244, byte(r.IntN(4)) << 4, byte(r.IntN(4)) << 6})
			n.PodCIDRs = append(n.PodCIDRs, netip.PrefixFrom(a, 14+r.IntN(14)).Masked())
		}
		if r.IntN(2) > 0 {
			a := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, byte(r.IntN(4))})
			n.PodCIDRs = append(n.PodCIDRs, netip.PrefixFrom(a, 60+r.IntN(6)).Masked())
		}
		for range r.IntN(3) {
			n.Addresses = append(n.Addresses, netip.AddrFrom4([4]byte{198, 51, 100, byte(r.IntN(8))}))
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// TestAdmitGivesTheLawfulVerdictInAnyOrder checks the rules of Admit against their plain wording.
func TestAdmitGivesTheLawfulVerdictInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		nodes := crowd(r)
		want := verdict(nodes)
		input := fmt.Sprint(nodes)
		admitted, refused := Admit(nodes)
		if fmt.Sprint(nodes) != input {
			t.Fatalf("Admit changed its input %s to %v", input, nodes)
		}
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		if d := cmp.Diff(want, verdict(nodes)); d != "" {
			t.Fatalf("%v: another order, another verdict:\n%s", nodes, d)
		}

		// The law, quadratic and in so many words: eldest first, each takes what none holds.
		slices.SortFunc(nodes, elder)
		var ranges []netip.Prefix
		addresses := map[netip.Addr]bool{}
		lost := 0
		for _, n := range nodes {
			law := Node{Name: n.Name, Created: n.Created}
			for _, p := range n.PodCIDRs {
				if slices.ContainsFunc(ranges, p.Overlaps) {
					lost++
				} else {
					law.PodCIDRs = append(law.PodCIDRs, p)
				}
			}
			for _, a := range n.Addresses {
				switch {
				case !addresses[a]:
					addresses[a] = true
					law.Addresses = append(law.Addresses, a)
				case !slices.Contains(law.Addresses, a):
					lost++
				}
			}
			ranges = append(ranges, law.PodCIDRs...)
			if d := cmp.Diff(law, admitted[n.Name], compareNetip, comparePrefix); d != "" {
				t.Fatalf("%v: %s was admitted otherwise than the law says:\n%s", nodes, n.Name, d)
			}
		}
		// Everything lost has its Refusal, and its Holder really holds something that collides.
		if got := len(refused); got != lost && !repeats(nodes) {
			t.Fatalf("%v: %d refusals for %d lost claims: %v", nodes, got, lost, refused)
		}
		for _, f := range refused {
			kind, what, _ := strings.Cut(f.What, " ")
			holder := admitted[f.Holder]
			var collides bool
			if kind == "podCIDR" {
				collides = slices.ContainsFunc(holder.PodCIDRs, netip.MustParsePrefix(what).Overlaps)
			} else {
				collides = slices.Contains(holder.Addresses, netip.MustParseAddr(what))
			}
			if !collides || f.Holder == f.Node {
				t.Fatalf("%v: %+v, but %+v does not stand in the way", nodes, f, holder)
			}
		}
	}
}

// repeats says whether a Node names an address twice: Admit and the law count that differently.
func repeats(nodes []Node) bool {
	return slices.ContainsFunc(nodes, func(n Node) bool {
		return len(n.Addresses) == 2 && n.Addresses[0] == n.Addresses[1]
	})
}

func disjoint(size int) []Node {
	var nodes []Node
	for i := range size {
		nodes = append(nodes, claimant(fmt.Sprint("n", i), i,
			fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("2001:db8:0:%x::/64", i), fmt.Sprintf("198.18.%d.%d", i>>8, i&255)))
	}
	return nodes
}

func BenchmarkAdmit5000Nodes(b *testing.B) {
	nodes := disjoint(5000)
	for b.Loop() {
		Admit(nodes)
	}
}

func BenchmarkAdmit5000NodesThatAllOverlap(b *testing.B) {
	nodes := append(disjoint(5000), claimant("wide", 9999, "10.0.0.0/8", "2001:db8::/32"))
	for b.Loop() {
		Admit(nodes)
	}
}
