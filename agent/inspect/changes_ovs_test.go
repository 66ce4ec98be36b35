package inspect_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// leastPerBundle is how many changes meet in one bundle at least, as they do in an agent that is busy.
const leastPerBundle = 10

// TestAfterRandomChangesEveryLiveFlowHasALiveObject lets pods, nodes, Services and policies come, change and go, the MTU
// move and the agent restart, and looks whether each flow and group of the real bridge decodes and belongs to an object
// that is there. TWILL_CHANGES sets how many changes; 10000 take some minutes.
func TestAfterRandomChangesEveryLiveFlowHasALiveObject(t *testing.T) {
	total := 400
	if v := os.Getenv("TWILL_CHANGES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < leastPerBundle {
			t.Fatalf("TWILL_CHANGES=%q: at least %d", v, leastPerBundle)
		}
		total = n
	}
	n := startNode(t, alpha(), 1, 2, 3)
	r := rand.New(rand.NewPCG(uint64(total), 5))
	town := town{docs: map[string]string{}}
	before, checks := n.world, 0
	happened, seen := map[string]int{}, map[string]bool{}
	for done := 0; done < total; {
		w := copyOf(before)
		for range max(leastPerBundle, total/200) {
			happened[town.change(r, w)]++
			done++
		}
		town.fill(t, w)
		delta, err := replace(n.desired, before, w)
		if err != nil {
			t.Fatal(err)
		}
		if r.IntN(10) == 0 { // the agent restarts, and knows only what it reads
			happened["restart"]++
			n.desired = compiled(t, w)
			delta = n.desired.Diff(n.live())
			n.desired.DiffGroups(n.groups(), &delta)
		}
		if !delta.Empty() {
			n.apply(delta.Bundle())
		}
		before, n.world = w, w
		if done%(total/10) == 0 || done >= total {
			checks++
			everyFlowHasAnObject(t, n, done, seen)
		}
	}
	for _, kind := range []string{"pod", "pod gone", "node", "node gone", "MTU", "Service", "Service gone", "NetworkPolicy", "NetworkPolicy gone", "ClusterNetworkPolicy", "ClusterNetworkPolicy gone", "restart"} {
		if happened[kind] == 0 {
			t.Errorf("no change of kind %q among %v", kind, happened)
		}
	}
	for _, kind := range []string{"pod", "node", "service", "service-address", "endpoint-address", "networkpolicy", "clusternetworkpolicy", "clause", "peer", "pipeline"} {
		if !seen[kind] {
			t.Errorf("no flow of a %s was ever looked at", kind)
		}
	}
	if checks < 10 {
		t.Errorf("%d checks", checks)
	}
	t.Logf("%d changes %v, %d checks, %d flows and %d groups at the end", total, happened, checks, n.desired.Len(), len(n.desired.Groups()))
}

func everyFlowHasAnObject(t *testing.T, n *node, done int, seen map[string]bool) {
	t.Helper()
	list, err := n.subject().Flows(t.Context(), inspect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != n.desired.Len() {
		t.Errorf("after %d changes: %d flows live, %d wanted", done, len(list), n.desired.Len())
	}
	owners := n.world.Owners()
	for _, f := range list {
		switch {
		case f.State != "" || !slices.Contains(owners, f.Owner):
			t.Errorf("after %d changes: orphan %+v", done, f)
		case f.Sentence == "" || slices.ContainsFunc([]string{"no such pod", "cannot be read", "no longer in force", "of identity"}, func(s string) bool { return strings.Contains(f.Sentence, s) }):
			t.Errorf("after %d changes: %s says %q", done, f.Raw, f.Sentence)
		}
		seen[f.Owner.Kind()] = true
	}
	groups := n.groups()
	if wanted := len(n.desired.Groups()); len(groups) != wanted {
		t.Errorf("after %d changes: %d groups live, %d wanted", done, len(groups), wanted)
	}
	for _, g := range groups {
		if wanted, ok := n.desired.Group(g.ID); !ok || wanted.String() != g.Text || !slices.Contains(owners, wanted.Owner) {
			t.Errorf("after %d changes: orphan %+v", done, g)
		}
	}
}

func copyOf(w *flows.World) *flows.World {
	c := *w
	c.Peers, c.Pods = maps.Clone(w.Peers), maps.Clone(w.Pods)
	return &c
}

// replace compiles what differs between two Worlds, as the agent's loop does.
func replace(d *flows.Desired, before, now *flows.World) (flows.Delta, error) {
	wanted := map[flows.Owner][]flows.Flow{}
	for _, o := range flows.Changed(before, now) {
		fs, err := flows.Compile(now, o)
		if err != nil {
			return flows.Delta{}, err
		}
		wanted[o] = fs
	}
	return d.Replace(wanted)
}

// change does one thing that happens to pods and nodes, and names it. Numbers are from small ranges, so that names,
// ports and addresses are often used again.
func change(r *rand.Rand, w *flows.World) string {
	i := 2 + r.IntN(60)
	pod := attachment(uint32(100+i), fmt.Sprintf("ns%d", i%3), fmt.Sprintf("pod-%d", r.IntN(80)), i)
	peer := 4 + r.IntN(60)
	node := nodeObject(fmt.Sprintf("peer-%d", peer), peer)
	switch r.IntN(10) {
	case 0, 1, 2, 3: // a pod comes, and whoever had its address or port is gone
		for o, list := range w.Pods {
			if list[0].OFPort == pod.OFPort || list[0].Addresses[0] == pod.Addresses[0] {
				delete(w.Pods, o)
			}
		}
		if r.IntN(5) == 0 {
			pod.MTU = 1500
		}
		w.Pods[pod.Owner()] = []flows.Attachment{pod}
		return "pod"
	case 4, 5:
		for _, o := range slices.Sorted(maps.Keys(w.Pods)) {
			if r.IntN(4) == 0 {
				delete(w.Pods, o)
				break
			}
		}
		return "pod gone"
	case 6, 7:
		w.Peers[node.Name] = node
	case 8:
		delete(w.Peers, node.Name)
		return "node gone"
	case 9:
		switch r.IntN(4) {
		case 0:
			w.MTU = 1400 + 50*r.IntN(2)
			return "MTU"
		case 1:
			node.Addresses = node.Addresses[:1]
			w.Peers[node.Name] = node
		default:
			node.PodCIDRs = node.PodCIDRs[:1]
			w.Peers[node.Name] = node
		}
	}
	return "node"
}
