package flows_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/flows"
)

// model is a switch: what stands at each place, as bundles leave it.
type model struct {
	t     testing.TB
	table map[flows.Key]string
	at    map[flows.Key]uint64
}

func newModel(t testing.TB) *model {
	return &model{t: t, table: map[flows.Key]string{}, at: map[flows.Key]uint64{}}
}

// apply carries out a bundle's text line by line.
func (m *model) apply(d flows.Delta) {
	m.t.Helper()
	added := map[string]flows.Flow{}
	for _, f := range d.Add {
		added["flow add "+f.String()] = f
	}
	for line := range strings.Lines(d.Bundle()) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "flow delete cookie="); ok {
			var c uint64
			if _, err := fmt.Sscanf(rest, "0x%x/-1", &c); err != nil {
				m.t.Fatalf("%q: %v", line, err)
			}
			for k, have := range m.at {
				if have == c {
					delete(m.at, k)
					delete(m.table, k)
				}
			}
			continue
		}
		f, ok := added[line]
		if !ok {
			m.t.Fatalf("unexpected line %q", line)
		}
		m.table[f.Key()], m.at[f.Key()] = f.String(), f.Cookie
	}
}

func (m *model) lines() []string { return slices.Sorted(maps.Values(m.table)) }

func lines(d *flows.Desired) []string {
	var out []string
	for _, f := range d.Flows() {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return out
}

// world invents a World out of few values, so that it often shares parts with the one before and that
// two owners often want the same.
func world(r *rand.Rand) *flows.World {
	addr := func(format string, n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, r.IntN(n)+1)) }
	node := func(name string) flows.Node {
		n := flows.Node{Name: name}
		if i := r.IntN(4); i > 0 {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", i)))
		}
		if i := r.IntN(4); i > 0 {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("2001:db8:1:%d::/64", i)))
		}
		if r.IntN(8) > 0 {
			n.Addresses = append(n.Addresses, addr("198.51.100.%d", 4))
		}
		if r.IntN(2) > 0 {
			n.Addresses = append(n.Addresses, addr("2001:db8:f::%d", 4))
		}
		return n
	}
	w := &flows.World{
		Node: node("alpha"), MTU: 1430 + 20*r.IntN(2), Peers: map[string]flows.Node{}, Pods: map[flows.Owner][]flows.Attachment{},
		Tunnel: flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7, Local: netip.MustParseAddr("198.51.100.1")},
	}
	if r.IntN(4) == 0 {
		w.Tunnel.Local = netip.MustParseAddr("2001:db8:f::1")
	}
	if r.IntN(2) == 0 {
		w.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}
	}
	for _, name := range []string{"beta", "gamma", "zeta"} {
		if r.IntN(3) > 0 {
			w.Peers[name] = node(name)
		}
	}
	for i := range r.IntN(6) {
		port := uint32(r.IntN(6) + 1)
		a := flows.Attachment{
			Port: fmt.Sprint("p", port), OFPort: port, Namespace: "default", Pod: fmt.Sprint("web-", r.IntN(4)), IfName: "eth0",
			MAC: []byte{10, 88, 0, 0, 0, byte(i)}, MTU: 1450, Addresses: []netip.Addr{addr("198.18.1.%d", 5), addr("2001:db8:1:1::%d", 5)},
		}
		w.Pods[a.Owner()] = append(w.Pods[a.Owner()], a)
	}
	return w
}

// TestWhatIsWantedDependsOnTheWorldNotOnTheWayThere visits Worlds at random, owners in batches of any
// order, and compares with a fresh start in the last of them.
func TestWhatIsWantedDependsOnTheWorldNotOnTheWayThere(t *testing.T) {
	conflicts := 0
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		d, m := flows.NewDesired(), newModel(t)
		var old *flows.World
		for range 6 {
			now := world(r)
			owners := flows.Changed(old, now)
			r.Shuffle(len(owners), func(i, j int) { owners[i], owners[j] = owners[j], owners[i] })
			for len(owners) > 0 {
				n := r.IntN(len(owners)) + 1
				wanted := map[flows.Owner][]flows.Flow{}
				for _, o := range owners[:n] {
					wanted[o], _ = flows.Compile(now, o)
				}
				delta, err := d.Replace(wanted)
				if err != nil {
					conflicts++
				}
				m.apply(delta)
				if diff := cmp.Diff(lines(d), m.lines()); diff != "" {
					t.Fatalf("seed %d: what is wanted, and what the bundles made of the switch:\n%s", seed, diff)
				}
				owners = owners[n:]
			}
			fresh := flows.NewDesired()
			wanted, _ := compile(now)
			first, _ := fresh.Replace(wanted)
			if diff := cmp.Diff(lines(fresh), lines(d)); diff != "" {
				t.Fatalf("seed %d: a fresh start, and the way there:\n%s", seed, diff)
			}
			if diff := cmp.Diff(first, fresh.Diff(nil)); diff != "" {
				t.Fatalf("seed %d: the first Delta is not the difference from an empty switch:\n%s", seed, diff)
			}
			old = now
		}
	}
	if conflicts == 0 {
		t.Error("no two owners ever wanted the same: the Worlds are too tame")
	}
}

func TestChangedMissesNoOwnerWhoseFlowsDiffer(t *testing.T) {
	seen := 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 2))
		old := world(r)
		now := world(r)
		if r.IntN(2) == 0 { // the same but for one part
			keep := *old
			switch r.IntN(7) {
			case 0:
				keep.Pods = now.Pods
			case 1:
				keep.Peers = now.Peers
			case 2:
				keep.MTU = now.MTU
			case 3:
				keep.ClusterCIDRs = now.ClusterCIDRs
			case 4:
				keep.Node = now.Node
			case 5:
				keep.Tunnel = now.Tunnel
			}
			now = &keep
		}
		changed := flows.Changed(old, now)
		for _, o := range append(old.Owners(), now.Owners()...) {
			before, e1 := flows.Compile(old, o)
			after, e2 := flows.Compile(now, o)
			if cmp.Equal(before, after) && fmt.Sprint(e1) == fmt.Sprint(e2) {
				continue
			}
			seen++
			if !slices.Contains(changed, o) {
				t.Errorf("seed %d: %s has other flows now, but is not among %v", seed, o, changed)
			}
		}
	}
	if seen == 0 {
		t.Error("nothing ever changed")
	}
}

func TestTheSmallerOwnerKeepsAConflictingFlowAndTheErrorNamesBoth(t *testing.T) {
	flow := func(o flows.Owner, cookie uint64) flows.Flow {
		return flows.Flow{Table: flows.Route, Priority: 100, Match: flows.ParseMatch("ip,nw_dst=198.18.2.0/24"), Owner: o, Cookie: cookie}
	}
	d := flows.NewDesired()
	if _, err := d.Replace(map[flows.Owner][]flows.Flow{"node/b": {flow("node/b", 2)}}); err != nil {
		t.Fatal(err)
	}
	delta, err := d.Replace(map[flows.Owner][]flows.Flow{"node/a": {flow("node/a", 1)}})
	if err == nil || !strings.Contains(err.Error(), "node/a and node/b both ask for table=60,priority=100,ip,nw_dst=198.18.2.0/24; node/a gets it") {
		t.Errorf("got %v", err)
	}
	if len(delta.Add) != 1 || delta.Add[0].Owner != "node/a" || len(delta.Delete) != 0 {
		t.Errorf("got %+v, want the flow of node/a in place of the other", delta)
	}
	delta, err = d.Replace(map[flows.Owner][]flows.Flow{"node/a": nil})
	if err != nil || len(delta.Add) != 1 || delta.Add[0].Owner != "node/b" || len(delta.Delete) != 0 {
		t.Errorf("got %+v, %v, want the flow of node/b back", delta, err)
	}
}

func TestDiffFindsWhatIsWrongOnTheSwitch(t *testing.T) {
	d := desired(t, readScenario(t, "testdata/three-dual.txtar").world)
	good := func() []flows.Live {
		var out []flows.Live
		for _, f := range d.Flows() {
			out = append(out, flows.Live{Table: f.Table, Priority: f.Priority, Cookie: f.Cookie, Match: f.Match.String(), Actions: f.Actions.String()})
		}
		return out
	}
	first := d.Flows()[0]
	for _, c := range []struct {
		name          string
		spoil         func([]flows.Live) []flows.Live
		added         int
		deleted       []uint64
		deletedBefore bool
	}{
		{name: "nothing", spoil: func(l []flows.Live) []flows.Live { return l }},
		{name: "one is missing", spoil: func(l []flows.Live) []flows.Live { return l[1:] }, added: 1},
		{name: "all are missing", spoil: func([]flows.Live) []flows.Live { return nil }, added: d.Len()},
		{name: "a foreign flow", spoil: func(l []flows.Live) []flows.Live { return append(l, flows.Live{Table: 3, Cookie: 0xbad}) }, deleted: []uint64{0xbad}},
		{name: "two without a cookie", spoil: func(l []flows.Live) []flows.Live { return append(l, flows.Live{}, flows.Live{Table: 1}) }, deleted: []uint64{0}},
		{name: "one stands twice", spoil: func(l []flows.Live) []flows.Live { return append(l, flows.Live{Table: 3, Cookie: first.Cookie}) },
			added: 1, deleted: []uint64{first.Cookie}, deletedBefore: true},
		{name: "one stands at another table", spoil: func(l []flows.Live) []flows.Live { l[0].Table = 7; return l },
			added: 1, deleted: []uint64{first.Cookie}, deletedBefore: true},
		{name: "one stands at another priority", spoil: func(l []flows.Live) []flows.Live { l[0].Priority++; return l },
			added: 1, deleted: []uint64{first.Cookie}, deletedBefore: true},
	} {
		got := d.Diff(c.spoil(good()))
		if len(got.Add) != c.added || !slices.Equal(got.Delete, c.deleted) || got.Empty() != (c.added+len(c.deleted) == 0) {
			t.Errorf("%s: %d to add, delete %#x; want %d, %#x", c.name, len(got.Add), got.Delete, c.added, c.deleted)
		}
		if c.added > 0 && len(c.deleted) > 0 {
			b := got.Bundle()
			if before := strings.Index(b, "flow delete") < strings.Index(b, "flow add"); before != c.deletedBefore {
				t.Errorf("%s: the deletion stands first: %v, want %v\n%s", c.name, before, c.deletedBefore, b)
			}
		}
	}
}

func TestABundleAddsBeforeItDeletes(t *testing.T) {
	w := readScenario(t, "testdata/three-dual.txtar").world
	d := desired(t, w)
	now := *w
	now.Peers = maps.Clone(w.Peers)
	delete(now.Peers, "beta")
	now.MTU = 1400
	wanted := map[flows.Owner][]flows.Flow{}
	for _, o := range flows.Changed(w, &now) {
		wanted[o], _ = flows.Compile(&now, o)
	}
	delta, err := d.Replace(wanted)
	if err != nil || len(delta.Add) == 0 || len(delta.Delete) == 0 {
		t.Fatalf("%d to add, %d to delete, %v; want both", len(delta.Add), len(delta.Delete), err)
	}
	b := delta.Bundle()
	if strings.LastIndex(b, "flow add") > strings.Index(b, "flow delete") {
		t.Errorf("a deletion stands before an addition:\n%s", b)
	}
}

func TestAddingAndRemovingOnePodChangesItsFlowsOnly(t *testing.T) {
	w := readScenario(t, "testdata/three-dual.txtar").world
	less := *w
	less.Pods = maps.Clone(w.Pods)
	o := flows.PodOwner("shop", "db", "eth0")
	delete(less.Pods, o)
	if got := flows.Changed(&less, w); !slices.Equal(got, []flows.Owner{o}) {
		t.Errorf("adding %s wants %v compiled", o, got)
	}
	d := desired(t, &less)
	fs, err := flows.Compile(w, o)
	if err != nil {
		t.Fatal(err)
	}
	delta, err := d.Replace(map[flows.Owner][]flows.Flow{o: fs})
	if err != nil || len(delta.Add) != len(fs) || len(delta.Delete) != 0 {
		t.Errorf("adding it: %d added, %d deleted, %v; want %d, 0", len(delta.Add), len(delta.Delete), err, len(fs))
	}
	delta, err = d.Replace(map[flows.Owner][]flows.Flow{o: nil})
	if err != nil || len(delta.Add) != 0 || len(delta.Delete) != len(fs) {
		t.Errorf("removing it: %d added, %d deleted, %v; want 0, %d", len(delta.Add), len(delta.Delete), err, len(fs))
	}
}
