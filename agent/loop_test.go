package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// fakeBridge is a model of the switch: what it holds is what the bundles said.
type fakeBridge struct {
	mu      sync.Mutex
	held    map[uint64]ovs.Installed
	bundles []string
	broken  error
	dialect func(ovs.Installed) ovs.Installed // how it prints a flow
}

func newFakeBridge() *fakeBridge { return &fakeBridge{held: map[uint64]ovs.Installed{}} }

func (b *fakeBridge) Flows(context.Context) ([]ovs.Installed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return nil, b.broken
	}
	var out []ovs.Installed
	for _, f := range b.held {
		if b.dialect != nil {
			f = b.dialect(f)
		}
		out = append(out, f)
	}
	return out, nil
}

func (b *fakeBridge) Groups(context.Context) (string, error) { return "", nil }

func (b *fakeBridge) Apply(_ context.Context, bundle string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return b.broken
	}
	b.bundles = append(b.bundles, bundle)
	for line := range strings.Lines(bundle) {
		var cookie uint64
		if _, err := fmt.Sscanf(line, "flow delete cookie=%v/-1", &cookie); err == nil {
			delete(b.held, cookie)
			continue
		}
		flow, isFlow := strings.CutPrefix(line, "flow add ")
		parsed, err := ovs.ParseFlows(strings.NewReader(flow))
		if err != nil || !isFlow || len(parsed) != 1 {
			return fmt.Errorf("line %q: %w", line, err)
		}
		f := parsed[0]
		b.held[f.Cookie] = f
	}
	return nil
}

// sent counts the bundles.
func (b *fakeBridge) sent() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.bundles)
}

func (b *fakeBridge) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// loopWith runs a loop on the bridge until the test ends. Worlds are taken from *w at each pass.
func loopWith(t *testing.T, b bridge, w func() (*flows.World, error)) (*loop, *test.Hook) {
	t.Helper()
	log, hook := test.NewNullLogger()
	log.SetOutput(io.Discard)
	log.SetLevel(logrus.DebugLevel)
	l := newLoop(&loop{world: w, bridge: b, log: log, seen: func(_, _ *flows.World) {}, meter: newMetrics()})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l, hook
}

func aWorld(peers ...string) *flows.World {
	w := &flows.World{
		Node:   flows.Node{Name: "node-0", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.100")}},
		Tunnel: flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7, Local: netip.MustParseAddr("198.51.100.100")}, MTU: 1450,
		Peers: map[string]flows.Node{},
	}
	for i, name := range peers {
		w.Peers[name] = flows.Node{
			Name: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", i+1))},
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i+1))},
		}
	}
	return w
}

func mustApply(t *testing.T, l *loop, owners ...flows.Owner) {
	t.Helper()
	if err := l.Apply(t.Context(), owners...); err != nil {
		t.Fatalf("Apply: %v", err)
	}
}

func TestASecondAgentOnTheSameBridgeAddsAndDeletesNothing(t *testing.T) {
	b := newFakeBridge()
	world := func() (*flows.World, error) { return aWorld("a", "b"), nil }
	first, _ := loopWith(t, b, world)
	mustApply(t, first, flows.Pipeline)
	if b.sent() != 1 {
		t.Fatalf("the first agent sent %d bundles, want 1", b.sent())
	}
	second, hook := loopWith(t, b, world)
	mustApply(t, second, flows.Pipeline)
	if b.sent() != 1 {
		t.Errorf("the second agent sent a bundle:\n%s", b.bundles[1])
	}
	if got := hook.LastEntry().Data; got["added"] != 0 || got["deleted"] != 0 {
		t.Errorf("logged added=%v deleted=%v, want 0 and 0", got["added"], got["deleted"])
	}
}

func TestAPeerThatComesAndGoesTouchesOnlyItsOwnFlows(t *testing.T) {
	b := newFakeBridge()
	w := aWorld("a")
	var mu sync.Mutex
	l, _ := loopWith(t, b, func() (*flows.World, error) { mu.Lock(); defer mu.Unlock(); return w, nil })
	mustApply(t, l)
	set := func(x *flows.World) { mu.Lock(); w = x; mu.Unlock(); mustApply(t, l) }
	set(aWorld("a", "b"))
	set(aWorld("a"))
	if b.sent() != 3 {
		t.Fatalf("%d bundles, want 3", b.sent())
	}
	for _, c := range []struct {
		bundle        string
		adds, deletes int
	}{{b.bundles[1], 3, 0}, {b.bundles[2], 0, 3}} {
		adds, deletes := strings.Count(c.bundle, "flow add"), strings.Count(c.bundle, "flow delete")
		if adds != c.adds || deletes != c.deletes {
			t.Errorf("%d adds and %d deletes, want %d and %d:\n%s", adds, deletes, c.adds, c.deletes, c.bundle)
		}
	}
}

func TestASwitchThatPrintsFlowsInOtherWordsIsNotRepairedForEver(t *testing.T) {
	b := newFakeBridge()
	b.dialect = func(f ovs.Installed) ovs.Installed {
		f.Actions = strings.ReplaceAll(f.Actions, "goto_table:", "GOTO:")
		return f
	}
	w := aWorld("node-1")
	l, hook := loopWith(t, b, func() (*flows.World, error) { return w, nil })
	mustApply(t, l)
	sent := b.sent()
	readBack := func() {
		t.Helper()
		done := make(chan error, 1)
		l.ask("audit", true, done)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	readBack()
	if b.sent() != sent {
		t.Errorf("%d bundles for a bridge that is as it should be", b.sent()-sent)
	}
	b.change(func() { // one flow is weakened, in the same dialect
		for c, f := range b.held {
			if f.Table == uint8(flows.Classify) {
				f.Actions = "goto_table:77"
				b.held[c] = f
				return
			}
		}
	})
	hook.Reset()
	readBack()
	if b.sent() != sent+1 {
		t.Errorf("%d bundles after a flow was weakened, want 1", b.sent()-sent)
	}
	readBack()
	if b.sent() != sent+1 {
		t.Errorf("repaired %d times", b.sent()-sent)
	}
}

func TestAnAuditRepairsWhatSomebodyElseDid(t *testing.T) {
	b := newFakeBridge()
	l, hook := loopWith(t, b, func() (*flows.World, error) { return aWorld("a"), nil })
	mustApply(t, l)
	before := len(b.held)
	b.change(func() {
		for c := range b.held {
			delete(b.held, c) // one flow of ours is lost
			break
		}
		b.held[0] = ovs.Installed{Table: 0, Priority: 1} // and a foreign one appears
	})
	sent := b.sent()
	l.audit()
	awaitBundles(t, b, sent+1)
	mustApply(t, l)
	if _, foreign := b.held[0]; foreign || len(b.held) != before {
		t.Errorf("the bridge holds %d flows (foreign one: %v), want %d", len(b.held), foreign, before)
	}
	warned := false
	for _, e := range hook.AllEntries() {
		warned = warned || e.Level == logrus.WarnLevel && e.Data["flows"] == 2
	}
	if !warned {
		t.Error("no warning about 2 repaired flows")
	}
}

func TestAFailureIsToldToThoseWhoWaitAndMendedOnceOVSIsBack(t *testing.T) {
	b := newFakeBridge()
	l, _ := loopWith(t, b, func() (*flows.World, error) { return aWorld("a"), nil })
	b.change(func() { b.broken = errors.New("connection refused") })
	if err := l.Apply(t.Context(), "pod/default/web"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Apply: %v, want OVS's reason", err)
	}
	if err := l.ready(); err == nil {
		t.Error("ready while the bridge cannot be reached")
	}
	b.change(func() { b.broken = nil })
	mustApply(t, l)
	if err := l.ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

func TestNothingIsAppliedBeforeTheWorldIsKnown(t *testing.T) {
	b := newFakeBridge()
	known := false
	var mu sync.Mutex
	l, _ := loopWith(t, b, func() (*flows.World, error) {
		mu.Lock()
		defer mu.Unlock()
		if !known {
			return nil, errors.New("waiting for the first list")
		}
		return aWorld(), nil
	})
	if err := l.Apply(t.Context()); err == nil || b.sent() != 0 {
		t.Errorf("Apply: %v with %d bundles, want an error and none", err, b.sent())
	}
	mu.Lock()
	known = true
	mu.Unlock()
	mustApply(t, l)
	if b.sent() != 1 {
		t.Errorf("%d bundles, want 1", b.sent())
	}
}

func TestTheSentinelIsTheSameInEveryWorld(t *testing.T) {
	want := sentinelCookie()
	fs, err := flows.Compile(aWorld("a", "b"), flows.Pipeline)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.Cookie == want && f.Drop == flows.DropUnknownPeer {
			return
		}
	}
	t.Errorf("no flow of the pipeline has the sentinel's cookie %#x", want)
}
