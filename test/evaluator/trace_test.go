package evaluator_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/bridgetest"
	"github.com/twill-net/twill/test/evaluator"
)

// seeds is how many random clusters are tried: a few in an ordinary run, as many as TWILL_POLICY_SEEDS says in a long one.
func seeds(t testing.TB) int {
	t.Helper()
	text := os.Getenv("TWILL_POLICY_SEEDS")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("TWILL_POLICY_SEEDS %q is not a number of clusters", text)
	}
	return n
}

// failedOnce are changes from the cluster of one seed to that of the next that once went wrong, by what it was.
func failedOnce() []uint64 {
	return []uint64{
		1, 2, // a ClusterNetworkPolicy that changed its priority left others with their old rank
		3, 4, // two rules with named ports changed each other's groups for ever
		34, 35, // a rule whose named port nobody had was not looked at again when somebody had it
	}
}

// objects are a cluster's, as the agent reads them.
type objects map[source.Key]any

func decode(t testing.TB, c evaluator.Cluster) objects {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, c)
	log := logrus.New()
	log.SetOutput(io.Discard)
	synced := make(chan struct{}, 1)
	var m *source.Manifests
	m, err := source.NewManifests(source.ManifestsConfig{Dir: dir, Log: log, OnChange: func(k source.Key) {
		if k == (source.Key{}) {
			synced <- struct{}{}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	<-synced
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if p := m.Problems(); len(p) > 0 {
		t.Fatalf("the cluster is not as it should be: %v", p)
	}
	out := objects{}
	get := func(kind, namespace, name string) {
		k := source.Key{Kind: kind, Namespace: namespace, Name: name}
		if v := m.Get(k); v != nil {
			out[k] = v
		}
	}
	for _, x := range c.Nodes {
		get("Node", "", x.Name)
	}
	for _, x := range c.Namespaces {
		get("Namespace", "", x.Name)
	}
	for _, x := range c.Pods {
		get("Pod", x.Namespace, x.Name)
	}
	for _, x := range c.NetworkPolicies {
		get("NetworkPolicy", x.Namespace, x.Name)
	}
	for _, x := range c.ClusterNetworkPolicies {
		get("ClusterNetworkPolicy", "", x.Name)
	}
	return out
}

func sortedKeys(o objects) []source.Key {
	var keys []source.Key
	for k := range o {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b source.Key) int { return compareText(a.String(), b.String()) })
	return keys
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// world is a cluster as the agent of node alpha has it, without policies.
func world(c evaluator.Cluster) *flows.World {
	w := &flows.World{
		Tunnel: flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7, Local: netip.MustParseAddr("198.51.100.1")},
		MTU:    1450, Peers: map[string]flows.Node{}, Pods: map[flows.Owner][]flows.Attachment{},
	}
	for _, x := range c.Nodes {
		n, _ := source.Convert(&x)
		if n.Name == here {
			w.Node = n
		} else {
			w.Peers[n.Name] = n
		}
	}
	port := uint32(0)
	for _, x := range c.Pods {
		if x.Spec.NodeName != here || x.Status.Phase != corev1.PodRunning {
			continue
		}
		port++
		a := flows.Attachment{
			Port: fmt.Sprintf("p%d", port), OFPort: port, Namespace: x.Namespace, Pod: x.Name, UID: string(x.UID), IfName: "eth0",
			MAC: net.HardwareAddr{0x0a, 0x58, 0, 0, 1, byte(port)}, MTU: 1450,
		}
		for _, ip := range x.Status.PodIPs {
			a.Addresses = append(a.Addresses, netip.MustParseAddr(ip.IP))
		}
		w.Pods[a.Owner()] = []flows.Attachment{a}
	}
	return w
}

func compile(t testing.TB, w *flows.World) *flows.Desired {
	t.Helper()
	wanted := map[flows.Owner][]flows.Flow{}
	for _, o := range w.Owners() {
		fs, err := flows.Compile(w, o)
		if err != nil {
			t.Fatal(err)
		}
		wanted[o] = fs
	}
	d := flows.NewDesired()
	if _, err := d.Replace(wanted); err != nil {
		t.Fatal(err)
	}
	return d
}

func text(d *flows.Desired) (out []string) {
	for _, f := range d.Flows() {
		out = append(out, string(f.Owner)+": "+f.String())
	}
	return out
}

// wander brings an index to a cluster in any order, by way of what was there before, and returns what it came to.
func wander(d dice, x *policy.Index, before, now objects, locals map[flows.Owner][]flows.Attachment) *flows.Policy {
	keys := sortedKeys(now)
	for k := range before {
		if _, stays := now[k]; !stays {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b source.Key) int { return compareText(a.String(), b.String()) })
	at := d.IntN(len(keys))
	for i, j := range d.Perm(len(keys)) {
		if i == at {
			x.SetLocal(attached(locals))
		}
		source.Tell(x, keys[j], now[keys[j]])
		if d.one(3) {
			x.Policy()
		}
	}
	return x.Policy()
}

// TestRandomPoliciesOnARealBridge compares, for random clusters, what Open vSwitch does to packets with what the
// documentation says; and what an index comes to after many changes with what a new one comes to.
func TestRandomPoliciesOnARealBridge(t *testing.T) {
	b := startBridge(t)
	wandering := policy.NewIndex()
	var before objects
	last := &flows.World{}
	known := flows.NewDesired()
	list := failedOnce()
	for s := range seeds(t) {
		list = append(list, uint64(s))
	}
	allowed, denied := 0, 0
	for _, seed := range list {
		d := roll(seed)
		c := d.cluster()
		now := decode(t, c)
		w := world(c)

		fresh := policy.NewIndex()
		for _, k := range sortedKeys(now) {
			source.Tell(fresh, k, now[k])
		}
		fresh.SetLocal(attached(w.Pods))
		w.Policy = fresh.Policy()
		want := compile(t, w)

		roamed := *w
		roamed.Policy = wander(d, wandering, before, now, w.Pods)
		before = now
		if diff := cmp.Diff(text(want), text(compile(t, &roamed))); diff != "" {
			t.Fatalf("seed %d: the order of events made a difference (-in order +as it came):\n%s", seed, diff)
		}
		// Only what has changed is compiled, as the agent does.
		wanted := map[flows.Owner][]flows.Flow{}
		for _, o := range flows.Changed(last, &roamed) {
			fs, err := flows.Compile(&roamed, o)
			if err != nil {
				t.Fatal(err)
			}
			wanted[o] = fs
		}
		delta, err := known.Replace(wanted)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		last = &roamed
		if diff := cmp.Diff(text(want), text(known)); diff != "" {
			t.Fatalf("seed %d: what changed was not all that had to be compiled again (-all +changed):\n%s", seed, diff)
		}
		b.apply(delta)
		a, n := b.compare(seed, c, &roamed, known, d)
		allowed, denied = allowed+a, denied+n
	}
	t.Logf("%d clusters, %d packets allowed, %d denied", len(list), allowed, denied)
	if allowed == 0 || denied == 0 {
		t.Error("one of the verdicts never came")
	}
	b.inStep(known)
}

// end is where a packet of a test can come from or go to.
type end struct {
	name    string
	pod     *corev1.Pod
	address netip.Addr
	in      string // how it enters the bridge, as a flow
	local   bool
}

// ends are all of one family.
func ends(c evaluator.Cluster, w *flows.World, v4 bool) (list []end) {
	family := func(a, b string) netip.Addr {
		if v4 {
			return netip.MustParseAddr(a)
		}
		return netip.MustParseAddr(b)
	}
	const gateway, tunnel = "in_port=32769,dl_src=0e:77:00:00:00:02", "in_port=32768,tun_id=7,tun_src=198.51.100.2,tun_dst=198.51.100.1,dl_src=0e:77:00:00:00:01"
	for i := range c.Pods {
		p := &c.Pods[i]
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		e := end{name: p.Namespace + "/" + p.Name, pod: p, address: family(p.Status.PodIPs[0].IP, p.Status.PodIPs[1].IP), in: tunnel}
		if list := w.Pods[flows.PodOwner(p.Namespace, p.Name, "eth0")]; len(list) > 0 {
			e.in, e.local = fmt.Sprintf("in_port=%d,dl_src=%s", list[0].OFPort, list[0].MAC), true
		}
		list = append(list, e)
	}
	return append(list,
		end{name: "node alpha", address: family("198.51.100.1", "2001:db8:ffff::1"), in: gateway},
		end{name: "node beta", address: family("198.51.100.2", "2001:db8:ffff::2"), in: tunnel},
		end{name: "outside", address: family("203.0.113.7", "2001:db8:2::7"), in: gateway},
		end{name: "far outside", address: family("203.0.113.200", "2001:db8:3::7"), in: gateway},
	)
}

// compare traces random packets and returns how many were allowed and denied.
func (b *bridge) compare(seed uint64, c evaluator.Cluster, w *flows.World, desired *flows.Desired, d dice) (allowed, denied int) {
	b.t.Helper()
	judge := flows.NewJudge(w)
	for _, v4 := range []bool{true, false} {
		all := ends(c, w, v4)
		for range packetsOfEach {
			from, to := all[d.IntN(len(all))], all[d.IntN(len(all))]
			if from == to || !from.local && !to.local {
				continue // nothing that this node decides
			}
			p := evaluator.Packet{Source: from.address, Destination: to.address,
				Protocol: pick(d, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "ICMP"),
				Port:     pick[int32](d, 53, 80, 80, 81, 443, 5353, 8080, 9999)}
			want, why := true, ""
			if from.local {
				want, why = c.Egress(p)
			}
			if want && to.local {
				want, why = c.Ingress(p)
			}
			got, flow, trace := b.verdict(from, p, desired)
			if got != want {
				b.t.Fatalf("seed %d: %s to %s, %s port %d (IPv4 %v): the documentation says %v (%s), the bridge %v by %s\n%s",
					seed, from.name, to.name, p.Protocol, p.Port, v4, want, why, got, flow, trace)
			}
			said := judge.Decide(flows.Tuple{Source: p.Source, Destination: p.Destination, Protocol: numberOf(p.Protocol, v4), Port: uint16(p.Port)})
			if said.Allowed != want {
				b.t.Fatalf("seed %d: %s to %s, %s port %d (IPv4 %v): the documentation says %v (%s), the judge: %s",
					seed, from.name, to.name, p.Protocol, p.Port, v4, want, why, said.Words)
			}
			if got {
				allowed++
			} else {
				denied++
			}
		}
	}
	return allowed, denied
}

func numberOf(p corev1.Protocol, v4 bool) uint8 {
	if p == "ICMP" && !v4 {
		return 58
	}
	return map[corev1.Protocol]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}[p]
}

// packetsOfEach is how many packets of each family are tried in one cluster.
const packetsOfEach = 60

func (b *bridge) verdict(from end, p evaluator.Packet, desired *flows.Desired) (ok bool, flow, trace string) {
	b.t.Helper()
	v4 := p.Source.Is4()
	keyword := map[corev1.Protocol]string{"TCP": "tcp", "UDP": "udp", "SCTP": "sctp", "ICMP": "icmp"}[p.Protocol]
	src, dst := "nw_src", "nw_dst"
	if !v4 {
		keyword, src, dst = keyword+"6", "ipv6_src", "ipv6_dst"
	}
	packet := fmt.Sprintf("%s,dl_dst=0e:77:00:00:00:01,%s,nw_ttl=64,%s=%s,%s=%s", from.in, keyword, src, p.Source, dst, p.Destination)
	switch {
	case p.Protocol == "TCP":
		packet += fmt.Sprintf(",tcp_src=40000,tcp_dst=%d,tcp_flags=syn", p.Port)
	case p.Protocol != "ICMP":
		name := strings.ToLower(string(p.Protocol))
		packet += fmt.Sprintf(",%[1]s_src=40000,%[1]s_dst=%[2]d", name, p.Port)
	case v4:
		packet += ",icmp_type=8,icmp_code=0"
	default:
		packet += ",icmpv6_type=128,icmpv6_code=0"
	}
	out, err := b.ctrl.Trace(b.ctx, bridgeName, packet, "--ct-next", "trk,new")
	if err != nil {
		b.t.Fatal(err)
	}
	got, err := flows.ParseTrace(out, bridgeName)
	if err != nil {
		b.t.Fatal(err)
	}
	f, known := desired.Flow(got.Last().Cookie)
	if !known {
		b.t.Fatalf("no flow of ours decided:\n%s", out)
	}
	if (f.Drop != "") != got.Dropped() {
		b.t.Fatalf("%s is the last flow, but the datapath does %q:\n%s", f, got.Datapath, out)
	}
	return !got.Dropped(), f.String(), out
}

const bridgeName = bridgetest.Name

// bridge is one on a real Open vSwitch with a dummy datapath.
type bridge struct {
	t    testing.TB
	ctx  context.Context
	sw   *ovs.Switch
	ctrl *ovs.Daemon
}

func startBridge(t testing.TB) *bridge {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	b := bridgetest.Start(ctx, t, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	return &bridge{t: t, ctx: ctx, ctrl: b.Daemon, sw: b.Switch}
}

func (b *bridge) apply(d flows.Delta) {
	b.t.Helper()
	if err := b.sw.Apply(b.ctx, d.Bundle()); err != nil {
		b.t.Fatal(err)
	}
}

// inStep wants the switch to print each flow as it was compiled.
func (b *bridge) inStep(d *flows.Desired) {
	b.t.Helper()
	installed, err := b.sw.Flows(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	if delta := d.Diff(ovs.Live(installed)); !delta.Empty() {
		b.t.Errorf("the switch shows other flows than were compiled: %s", delta.Bundle())
	}
}

// attached are the pods of the node as an index wants them.
func attached(pods map[flows.Owner][]flows.Attachment) map[string]policy.Local {
	out := map[string]policy.Local{}
	for _, list := range pods {
		for _, a := range list {
			out[a.Namespace+"/"+a.Pod] = policy.Local{Namespace: a.Namespace, Pod: a.Pod, UID: a.UID}
		}
	}
	return out
}
