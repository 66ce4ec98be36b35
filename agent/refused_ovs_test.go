package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/bridgetest"
)

// limited is an agent's policies and loop on a real Open vSwitch one of whose tables is small.
type limited struct {
	*testing.T
	*Agent
	bridge *bridgetest.Bridge
	dir    *source.Manifests
	path   string
	clock  atomic.Int64 // seconds
	pods   map[flows.Owner][]flows.Attachment
}

func (x *limited) advance(d time.Duration) { x.clock.Add(int64(d.Seconds())) }

// limit lets a table hold n flows; 0 is no limit (Flow_Table.flow_limit, ovs-vswitchd.conf.db(5)).
func (x *limited) limit(table flows.Table, n int) {
	x.Helper()
	row, err := x.bridge.OVS.Run(x.Context(), "ovs-vsctl", "get", "bridge", bridgetest.Name, fmt.Sprintf("flow_tables:%d", table))
	if err == nil {
		args := []string{"set", "flow_table", strings.TrimSpace(row), fmt.Sprintf("flow_limit=%d", n)}
		if n == 0 {
			args = []string{"clear", "flow_table", strings.TrimSpace(row), "flow_limit"}
		}
		_, err = x.bridge.OVS.Run(x.Context(), "ovs-vsctl", args...)
	}
	if err != nil {
		x.Fatal(err)
	}
}

func (x *limited) table(table flows.Table) (n int) {
	x.Helper()
	for _, f := range x.installed() {
		if flows.Table(f.Table) == table {
			n++
		}
	}
	return n
}

func (x *limited) installed() []ovs.Installed {
	x.Helper()
	list, err := x.bridge.Switch.Flows(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	return list
}

// drops lists the reasons for which a pod's own flows drop.
func (x *limited) drops(pod flows.Owner) (out []flows.Reason) {
	x.Helper()
	live := map[uint64]bool{}
	for _, f := range x.installed() {
		live[f.Cookie] = true
	}
	x.loop.view(func(d *flows.Desired, _ *flows.World, _ Applied) {
		for _, f := range d.Of(pod) {
			if live[f.Cookie] && f.Drop != "" && flows.Table(f.Table) >= flows.EgressAdmin && f.Table <= flows.IngressPolicy {
				out = append(out, f.Drop)
			}
		}
	})
	return out
}

func newLimited(t *testing.T) *limited {
	t.Helper()
	x := &limited{T: t, bridge: bridgetest.Start(t.Context(), t, 1, 2, 3), path: t.TempDir(), pods: map[flows.Owner][]flows.Attachment{}}
	log, _ := test.NewNullLogger()
	log.SetOutput(io.Discard)
	log.SetLevel(logrus.DebugLevel)
	x.Agent = &Agent{log: log, meter: newMetrics(), policies: newPolicies(log)}
	x.policies.refusals.clock = func() time.Time { return time.Unix(x.clock.Load(), 0) }
	for i, name := range []string{"a", "b", "c"} {
		a := flows.Attachment{Port: fmt.Sprintf("p%d", i+1), OFPort: uint32(i + 1), Namespace: "shop", Pod: name, UID: "uid-" + name, IfName: "eth0",
			MAC: net.HardwareAddr{0x0a, 0x58, 0, 0, 1, byte(i)}, MTU: 1450, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + i)})}}
		x.pods[a.Owner()] = []flows.Attachment{a}
	}
	var err error
	x.dir, err = source.NewManifests(source.ManifestsConfig{Dir: x.path, Log: log, OnChange: func(k source.Key) {
		if k != (source.Key{}) {
			x.tellProblems(k)
			x.policies.note(k)
			x.loop.kick(k.String())
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	x.source = x.dir
	x.policies.follow(x.dir, true)
	x.loop, _ = loopWith(t, x.bridge.Switch, func() (*flows.World, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		w := aWorld()
		w.Pods = maps.Clone(x.pods)
		w.Policy = x.policies.update(w.Pods)
		return w, nil
	})
	x.loop.refusedFlow, x.loop.seen = x.refused, x.tellFaults
	x.policies.refusals.pods = x.loop.withoutFlows
	x.write()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- x.dir.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	x.until("the first flows are in", func() bool { return x.loop.ready() == nil && x.table(flows.Isolate) > 0 })
	return x
}

// write makes the cluster have these policies beside its pods.
func (x *limited) write(policies ...string) {
	x.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	for _, name := range []string{"a", "b", "c", "d"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop, name: %s, uid: uid-%[1]s, labels: {app: %[1]s}}\n", name)
	}
	for _, p := range policies {
		b.WriteString("---\n" + p)
	}
	next := filepath.Join(x.path, ".next")
	err := os.WriteFile(next, []byte(b.String()), 0o600)
	if err = errors.Join(err, os.Rename(next, filepath.Join(x.path, "cluster.yaml"))); err != nil {
		x.Fatal(err)
	}
}

// until waits for a condition.
func (x *limited) until(what string, holds func() bool) {
	x.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			x.Fatalf("never: %s; %v; %v", what, x.loop.ready(), x.dir.Events())
		}
	}
}

// refusedObjects is what the metric names.
func (x *limited) refusedObjects() (out []string) {
	x.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(x.policies.refusals)
	families, err := r.Gather()
	if err != nil {
		x.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out = append(out, m.GetLabel()[0].GetValue())
		}
	}
	return out
}

// event is true once an Event about an object has these words.
func (x *limited) event(about source.Key, reason, words string) bool {
	return slices.ContainsFunc(x.dir.Events(), func(e source.Event) bool {
		return e.About.Key == about && e.Reason == reason && strings.Contains(e.Message, words)
	})
}

// wide is a policy with many ranges for pod a.
func wide(ranges int) string {
	var b strings.Builder
	b.WriteString("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: wide}\n" +
		"spec:\n  podSelector: {matchLabels: {app: a}}\n  ingress:\n  - from:\n")
	for i := range ranges {
		fmt.Fprintf(&b, "    - ipBlock: {cidr: 203.0.113.%d/32}\n", i)
	}
	return b.String()
}

const small = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: small}\nspec: {podSelector: {matchLabels: {app: b}}}\n"

// TestAPolicyThatOpenVSwitchRefusesClosesItsPodsAndNobodyElseWaits has a table that is too small for one of two
// policies.
func TestAPolicyThatOpenVSwitchRefusesClosesItsPodsAndNobodyElseWaits(t *testing.T) {
	x := newLimited(t)
	a, b := flows.PodOwner("shop", "a", "eth0"), flows.PodOwner("shop", "b", "eth0")
	x.limit(flows.IngressPolicy, x.table(flows.IngressPolicy)+1)
	x.write(wide(40), small)
	closed := []flows.Reason{flows.DropClosed, flows.DropClosed}
	x.until("pod a is closed and pod b has its policy", func() bool {
		return x.loop.ready() == nil && slices.Equal(x.drops(a), closed) && slices.Equal(x.drops(b), []flows.Reason{flows.DropIngress})
	})
	key := source.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "wide"}
	x.until("an Event names the policy, the owner of the flow and the reason", func() bool {
		return x.event(key, "TwillPolicyUnusable", "Open vSwitch refuses a flow of ") && x.event(key, "TwillPolicyUnusable", "OFPFMFC_TABLE_FULL")
	})
	if got := x.refusedObjects(); !slices.Equal(got, []string{"networkpolicy/shop/wide"}) {
		t.Errorf("the metric names %v", got)
	}

	// It is not tried before its time, and stays closed when it is refused again.
	if x.policies.tryAgain() {
		t.Error("tried again at once")
	}
	told := len(x.dir.Events())
	x.advance(firstRetry)
	if !x.policies.tryAgain() {
		t.Error("not tried again after its time")
	}
	mustApply(t, x.loop, a)
	if got := x.drops(a); !slices.Equal(got, closed) || len(x.dir.Events()) != told {
		t.Errorf("refused again: pod a drops %v, Events %v", got, x.dir.Events()[told:])
	}

	// With room it comes into force by itself.
	x.limit(flows.IngressPolicy, 0)
	x.advance(firstRetry)
	if x.policies.tryAgain() {
		t.Error("the second pause is as short as the first")
	}
	x.advance(firstRetry)
	if !x.policies.tryAgain() {
		t.Error("not tried again after the second pause")
	}
	mustApply(t, x.loop, a)
	if got := x.drops(a); !slices.Equal(got, []flows.Reason{flows.DropIngress}) {
		t.Errorf("with room, pod a drops %v", got)
	}
	if n := x.table(flows.IngressPolicy); n < 40 {
		t.Errorf("with room, the table has %d flows", n)
	}
	if got := x.refusedObjects(); len(got) > 0 {
		t.Errorf("with room, the metric still names %v", got)
	}
}

// TestARefusedPolicyThatChangesIsTriedAtOnce, and one that goes leaves nothing.
func TestARefusedPolicyThatChangesIsTriedAtOnce(t *testing.T) {
	x := newLimited(t)
	a := flows.PodOwner("shop", "a", "eth0")
	before := x.table(flows.IngressPolicy)
	x.limit(flows.IngressPolicy, before+6)
	x.write(wide(40))
	x.until("pod a is closed", func() bool { return slices.Contains(x.drops(a), flows.DropClosed) })
	x.write(wide(2))
	x.until("the smaller policy is in force", func() bool { return slices.Equal(x.drops(a), []flows.Reason{flows.DropIngress}) })
	x.write(wide(40))
	x.until("pod a is closed again", func() bool { return slices.Contains(x.drops(a), flows.DropClosed) })
	x.write()
	x.until("nothing is left", func() bool { return len(x.drops(a)) == 0 && x.table(flows.IngressPolicy) == before })
	if got := x.refusedObjects(); len(got) > 0 {
		t.Errorf("the metric still names %v", got)
	}
}

// TestAPodWhoseFlowsAreRefusedHasNone, its ADD fails, and others are served.
func TestAPodWhoseFlowsAreRefusedHasNone(t *testing.T) {
	x := newLimited(t)
	x.limit(flows.Guard, x.table(flows.Guard))
	d := flows.Attachment{Port: "p4", OFPort: 4, Namespace: "shop", Pod: "d", UID: "uid-d", IfName: "eth0",
		MAC: net.HardwareAddr{0x0a, 0x58, 0, 0, 1, 9}, MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.20")}}
	x.mu.Lock()
	x.pods[d.Owner()] = []flows.Attachment{d}
	x.mu.Unlock()
	err := x.loop.Apply(t.Context(), d.Owner())
	if err == nil || !strings.Contains(err.Error(), "pod/shop/d has no flows") || !strings.Contains(err.Error(), "OFPFMFC_TABLE_FULL") {
		t.Errorf("ADD is told %v", err)
	}
	if err := x.loop.ready(); err != nil {
		t.Errorf("others wait: %v", err)
	}
	if !x.event(source.Key{Kind: "Pod", Namespace: "shop", Name: "d"}, "TwillFlowsRefused", "OFPFMFC_TABLE_FULL") {
		t.Errorf("no Event: %v", x.dir.Events())
	}
	x.write(small)
	b := flows.PodOwner("shop", "b", "eth0")
	x.until("others get their policies", func() bool { return slices.Equal(x.drops(b), []flows.Reason{flows.DropIngress}) })
	if got := x.refusedObjects(); !slices.Equal(got, []string{string(d.Owner())}) {
		t.Errorf("the metric names %v", got)
	}
	x.limit(flows.Guard, 0)
	x.loop.tryAgain()
	mustApply(t, x.loop, d.Owner())
	if got := x.refusedObjects(); len(got) > 0 {
		t.Errorf("with room, the metric still names %v", got)
	}
}
