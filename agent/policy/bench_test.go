package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/twill-net/twill/flows"
)

// crowd is a cluster of pods in namespaces of a hundred, of which each node has a hundred, with policies that select
// one application each and let another one in. One application of each namespace is on this node.
func crowd(pods, policies int) *Index {
	ix := NewIndex()
	local := map[string]Local{}
	for i := range pods {
		ns, app := fmt.Sprintf("ns-%d", i/100), fmt.Sprintf("app-%d", i%10)
		p := &Pod{
			Namespace: ns, Name: fmt.Sprintf("pod-%d", i), UID: fmt.Sprintf("uid-%d", i),
			Labels:    LabelsOf(map[string]string{"app": app, "pod-template-hash": fmt.Sprintf("%x", i/10)}),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})},
		}
		ix.SetPod(p.Key(), p)
		if i < 100 {
			local[p.Key()] = Local{Namespace: ns, Pod: p.Name, UID: p.UID}
		}
	}
	for i := range pods/100 + 1 {
		ns := fmt.Sprintf("ns-%d", i)
		ix.SetNamespace(ns, &Namespace{Name: ns, Labels: LabelsOf(map[string]string{metadataName: ns})})
	}
	ix.SetLocal(local)
	for i := range policies {
		p := onePolicy(i, pods/100)
		ix.SetPolicy(p.Owner(), p)
	}
	ix.Policy()
	return ix
}

func onePolicy(i, namespaces int) *Policy {
	app := func(n int) Selector {
		return Selector{{Key: "app", Op: In, Values: []string{fmt.Sprintf("app-%d", n%10)}}}
	}
	ns := fmt.Sprintf("ns-%d", i%max(namespaces, 1))
	return &Policy{
		Namespace: ns, Name: fmt.Sprintf("np-%d", i), Tier: flows.NetworkTier, Subject: Pods{Namespace: ns, Pods: app(i)}, IsolatesIngress: true,
		Ingress: []Rule{{Verdict: flows.Accept, Peers: []Peer{{Pods: &Pods{Namespace: ns, Pods: app(i + 1)}}},
			Ports: []Ports{{Protocol: 6, First: 80, Last: 80}}}},
	}
}

// BenchmarkOneChange is a policy that begins and ceases to isolate pods of this node, beside many others.
func BenchmarkOneChange(b *testing.B) {
	for _, others := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprintf("policies=%d", others), func(b *testing.B) {
			ix := crowd(5000, others)
			p := onePolicy(0, 50)
			p.Name = "changing"
			for b.Loop() {
				ix.SetPolicy(p.Owner(), p)
				ix.Policy()
				ix.SetPolicy(p.Owner(), nil)
				ix.Policy()
			}
		})
	}
}

// BenchmarkOnePod is a pod elsewhere that comes and goes.
func BenchmarkOnePod(b *testing.B) {
	for _, others := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprintf("policies=%d", others), func(b *testing.B) {
			ix := crowd(5000, others)
			p := &Pod{Namespace: "ns-0", Name: "new", Labels: "app=app-1", Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.9")}}
			for b.Loop() {
				ix.SetPod(p.Key(), p)
				ix.Policy()
				ix.SetPod(p.Key(), nil)
				ix.Policy()
			}
		})
	}
}

// BenchmarkMemory reports what an index keeps of each pod of the cluster.
func BenchmarkMemory(b *testing.B) {
	const pods = 20000
	for b.Loop() {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ix := crowd(pods, 100)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/pods/1024, "KiB/pod")
		runtime.KeepAlive(ix)
	}
}

// TestFlowsAreASum has 200 pods that all may talk to one another by 200 rules: 40,000 pairs, some hundred conditions.
func TestFlowsAreASum(t *testing.T) {
	ix := NewIndex()
	local := map[string]Local{}
	ix.SetNamespace("a", &Namespace{Name: "a", Labels: "kubernetes.io/metadata.name=a"})
	for i := range 200 {
		p := &Pod{Namespace: "a", Name: fmt.Sprintf("p%d", i), Labels: "app=x", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 1, byte(i)})}}
		ix.SetPod(p.Key(), p)
		local[p.Key()] = Local{Namespace: "a", Pod: p.Name}
	}
	ix.SetLocal(local)
	all := Pods{Namespace: "a"}
	p := &Policy{Namespace: "a", Name: "all", Tier: flows.NetworkTier, Subject: all, IsolatesIngress: true,
		Ingress: []Rule{{Verdict: flows.Accept, AnyPort: true, Peers: []Peer{{Pods: &all}}}}}
	ix.SetPolicy(p.Owner(), p)
	out := ix.Policy()
	w := &flows.World{Policy: out}
	n := 0
	for _, o := range w.Owners() {
		fs, err := flows.Compile(w, o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fs {
			if f.Owner != flows.Pipeline {
				n++
			}
		}
	}
	if out.Pods.Len() != 200 || n < 200 || n > 250 {
		t.Errorf("%d isolated pods, %d flows of policies; want 200, one flow for each address and a few more", out.Pods.Len(), n)
	}
}
