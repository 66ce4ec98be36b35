package inspect_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

func TestABridgeThatHoldsWhatIsWantedVerifies(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	v, err := n.subject().Verify(t.Context(), 1500, 1)
	if err != nil {
		t.Fatal(err)
	}
	if v.Sampled != 1500 || v.Wanted != v.Live || v.Wanted == 0 {
		t.Errorf("sampled %d packets of 1500, %d flows wanted, %d live", v.Sampled, v.Wanted, v.Live)
	}
	for _, d := range v.Flows {
		t.Errorf("invented: %+v", d)
	}
	for _, d := range v.Verdicts {
		t.Errorf("%s\n  %s\n  expected %s\n  got      %s", d.What, d.Packet, d.Expected, d.Got)
	}
}

// mutation is one thing that somebody does to a flow behind the agent's back.
type mutation struct {
	what, bundle string
	over         flows.Key // where it puts a flow, which overwrites one that stands there
}

// mutate does one of five kinds of things to one flow of ours.
func mutate(r *rand.Rand, f flows.Flow) mutation {
	del := fmt.Sprintf("flow delete cookie=%#x/-1\n", f.Cookie)
	with := func(what, before string, g flows.Flow) mutation {
		return mutation{what, before + "flow add " + g.String() + "\n", g.Key()}
	}
	g := f
	switch kind := r.IntN(5); {
	case kind == 0:
		return mutation{"deleted", del, f.Key()}
	case kind == 1 && len(f.Match) > 0:
		g.Match = slices.Clone(f.Match)
		if i := r.IntN(len(g.Match)); needed(g.Match[i].Name) {
			g.Match = nil
		} else {
			g.Match = slices.Delete(g.Match, i, i+1)
		}
		if slices.ContainsFunc(f.Actions, func(a flows.Action) bool {
			return a.Verb == "move" || a.Verb == "dec_ttl" || a.Verb == "ct" || strings.Contains(a.Arg, "nd_")
		}) {
			g.Actions = nil // they need what the match no longer says
		}
		return with("weakened", del, g)
	case kind == 2:
		g.Priority = uint16(1 + (int(f.Priority)+1+r.IntN(500))%1000)
		return with(fmt.Sprintf("moved to priority %d", g.Priority), del, g)
	case kind == 3:
		g.Actions = flows.Actions{{Verb: "output", Arg: fmt.Sprint(1 + r.IntN(3))}}
		return with("redirected", "", g)
	}
	g.Actions = nil
	if len(f.Actions) == 0 {
		g.Actions = flows.Actions{{Verb: "IN_PORT"}}
	} else if last := f.Actions[len(f.Actions)-1]; last.Verb == "goto_table" && r.IntN(2) == 0 {
		g.Actions = flows.Actions{{Verb: "output", Arg: "3"}, last}
	}
	return with("changed in what it does", "", g)
}

// needed is a field that others of a match may depend on.
func needed(name string) bool {
	return slices.Contains([]string{"ip", "ipv6", "arp", "icmp6", "udp", "udp6"}, name)
}

// finds lets somebody do a mutation to a flow, and looks whether verify names that flow, and none but those that the
// mutation touches.
func (n *node) finds(s *inspect.Subject, i int, f flows.Flow, m mutation) {
	n.t.Helper()
	n.apply(m.bundle)
	v, err := s.Verify(n.t.Context(), 0, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	touched := map[string]bool{fmt.Sprintf("cookie=%#x", f.Cookie): true}
	for _, g := range n.desired.Flows() {
		if g.Key() == m.over {
			touched[fmt.Sprintf("cookie=%#x", g.Cookie)] = true
		}
	}
	found := false
	for _, d := range v.Flows {
		found = found || d.Wanted == f.String()
		if cookie, _, _ := strings.Cut(cmp.Or(d.Wanted, d.Live), ","); !touched[cookie] {
			n.t.Errorf("mutation %d (%s): invented %+v", i, m.what, d)
		}
	}
	if !found || len(v.Flows) > len(touched) || len(v.Groups) > 0 {
		n.t.Errorf("mutation %d (%s of %s): found %+v %+v", i, m.what, f, v.Flows, v.Groups)
	}
}

// TestVerifyFindsEachOfTwoHundredMutationsAndInventsNone does one thing at a time to one flow, and looks whether
// verify names that flow, and no other than those that the mutation touches.
func TestVerifyFindsEachOfTwoHundredMutationsAndInventsNone(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	r := rand.New(rand.NewPCG(20261125, 1))
	all := n.desired.Flows()
	s := n.subject()
	var seen []ovs.Installed // what verify itself has read
	s.Installed = func(ctx context.Context) (list []ovs.Installed, err error) {
		seen, err = n.sw.Flows(ctx)
		return seen, err
	}
	kinds := map[string]int{}
	for i := range 200 {
		f := all[r.IntN(len(all))]
		m := mutate(r, f)
		n.finds(s, i, f, m)
		kinds[strings.Fields(m.what)[0]]++
		n.apply(n.desired.Diff(ovs.Live(seen)).Bundle())
	}
	t.Logf("mutations: %v", kinds)
	if len(kinds) != 5 {
		t.Errorf("kinds of mutations: %v, want five", kinds)
	}
	v, err := s.Verify(t.Context(), 0, 0)
	if err != nil || len(v.Flows) != 0 {
		t.Errorf("after all repairs: %+v, %v", v.Flows, err)
	}
}

func TestTheVerdictsOfASampleTellOfAMutation(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	for _, f := range n.desired.Flows() {
		if f.Table != flows.Route || f.Owner != "pod/shop/db" || !strings.Contains(f.Match.String(), "nw_dst") {
			continue
		}
		f.Actions = slices.Clone(f.Actions)
		for i, a := range f.Actions {
			f.Actions[i].Arg = strings.Replace(a.Arg, "0x2->reg1", "0x1->reg1", 1)
		}
		n.apply("flow add " + f.String())
	}
	v, err := n.subject().Verify(t.Context(), 1000, 7)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Flows) != 1 || v.Flows[0].Kind != flows.Altered || !strings.Contains(v.Flows[0].What, "actions are") {
		t.Errorf("flows: %+v", v.Flows)
	}
	if len(v.Verdicts) == 0 {
		t.Error("no packet of the sample noticed that pod shop/db no longer gets its packets")
	}
	for _, d := range v.Verdicts {
		if !strings.Contains(d.Packet, "nw_dst=198.18.1.3,") {
			t.Errorf("invented: %+v", d)
		}
	}
}

// TestATraceOfAHealthyBridgeReadsNoTable: reading it back costs a process, and no step gives reason to.
func TestATraceOfAHealthyBridgeReadsNoTable(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	s, reads := n.subject(), 0
	s.Installed = func(ctx context.Context) ([]ovs.Installed, error) { reads++; return n.sw.Flows(ctx) }
	for _, q := range []inspect.Question{
		{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80},
		{From: "default/web-0", To: "198.18.2.7", Proto: "udp", Port: 53},
		{From: "default/web-0", To: "2001:db8:1:3::7", Proto: "icmp"},
		{From: "default/web-0", To: "203.0.113.9"},
		{From: "default/web-0", To: "198.18.1.99"},
		{From: "default/old", To: "shop/db", Proto: "tcp", Port: 80},
		{From: "node/beta", To: "shop/db", Proto: "tcp", Port: 80},
		{From: "host", To: "shop/db", Proto: "tcp", Port: 80},
	} {
		tr, err := s.Trace(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if reads > 0 {
			t.Errorf("%s: the table was read; %s", tr.What, tr.Raw)
			reads = 0
		}
		for _, step := range tr.Steps {
			if step.State != "" {
				t.Errorf("%s: %+v", tr.What, step)
			}
		}
	}
}

// TestWhyIsCausal takes away each object that an answer names, and looks whether the answer is another.
func TestWhyIsCausal(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	s := n.subject()
	asked, removed := 0, 0
	for _, from := range []string{"default/web-0", "default/old", "node/beta", "host"} {
		for _, to := range []string{"198.18.1.3", "2001:db8:1:1::3", "198.18.2.7", "198.51.100.3", "198.18.1.99", "198.18.77.1", "203.0.113.5", "198.18.1.1"} {
			q := inspect.Question{From: from, To: to, Proto: "tcp", Port: 80}
			if from == "node/beta" {
				q.Source = map[bool]string{true: "198.18.2.9", false: "2001:db8:1:2::9"}[!strings.Contains(to, ":")]
			}
			before, err := s.Why(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			asked++
			if before.Because == "" || before.Remedy == "" {
				t.Errorf("%s to %s: %+v has no reason or no remedy", from, to, before)
			}
			for _, cause := range before.Causes {
				w := without(alpha(), cause)
				if w == nil {
					continue // the node itself: without it there is no bridge to ask
				}
				spec := q
				spec.From = from
				n.become(w)
				after, err := s.Why(t.Context(), spec)
				removed++
				if err == nil && after.Outcome == before.Outcome && after.To == before.To && after.Reason == before.Reason {
					t.Errorf("%s to %s is %q because of %s, and without that %q as well", from, to, before.Sentence, cause, after.Sentence)
				}
				n.become(alpha())
			}
		}
	}
	if asked != 32 || removed < 20 {
		t.Errorf("%d questions, %d objects removed", asked, removed)
	}
}

// without is the World less one object, nil for the node itself.
func without(w *flows.World, o flows.Owner) *flows.World {
	kind, name, _ := strings.Cut(string(o), "/")
	if kind == "node" && name == w.Node.Name {
		return nil
	}
	if kind == "node" {
		delete(w.Peers, name)
	}
	delete(w.Pods, o)
	return w
}

// TestTraceAndWhySpeakOfWhatTheBridgeDoes lets somebody redirect what is for a pod.
func TestTraceAndWhySpeakOfWhatTheBridgeDoes(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	q := inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80}
	s := n.subject()
	good, err := s.Why(t.Context(), q)
	if err != nil || !good.Allowed || good.To != "shop/db" || len(good.Notes) > 0 {
		t.Fatalf("before: %+v, %v", good, err)
	}
	var route flows.Flow
	for _, f := range n.desired.Of("pod/shop/db") {
		if f.Table == flows.Route && strings.Contains(f.Match.String(), "198.18.1.3") {
			route = f
		}
	}
	for _, c := range []struct{ name, actions, outcome, says string }{
		{"redirected", "output:3", inspect.Delivered, "forwarded to pod default/old"},
		{"dropped", "drop", inspect.Dropped, "dropped at route by a flow that is altered"},
		{"to nobody", "output:77", inspect.Dropped, "port 77 (no such pod)"},
	} {
		n.apply(strings.Replace("flow add "+route.String(), "actions="+route.Actions.String(), "actions="+c.actions, 1))
		why, err := s.Why(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if why.Outcome != c.outcome || !strings.Contains(why.Sentence, c.says) {
			t.Errorf("%s: why says %s: %s", c.name, why.Outcome, why.Sentence)
		}
		if !strings.Contains(strings.Join(why.Notes, "\n"), "the flow met at route is altered (pod/shop/db's)") {
			t.Errorf("%s: why does not say that the flow is altered: %q", c.name, why.Notes)
		}
		tr, err := s.Trace(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		last := tr.Steps[len(tr.Steps)-1]
		if last.State != inspect.Altered || !strings.Contains(last.Sentence, "ALTERED, wanted:") {
			t.Errorf("%s: trace ends in %+v", c.name, last)
		}
		n.repair()
	}
}
