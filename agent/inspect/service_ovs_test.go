package inspect_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// TestTraceFollowsServicesAndPolicies asks for each kind of way that has connection tracking in it.
func TestTraceFollowsServicesAndPolicies(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s, reads := n.subject(), 0
	s.Installed = func(ctx context.Context) ([]ovs.Installed, error) { reads++; return n.sw.Flows(ctx) }
	for _, c := range []struct {
		name          string
		q             inspect.Question
		outcome, to   string
		says, through string
	}{
		{"a Service by its name", inspect.Question{From: "default/web-0", To: "service/default/web", Endpoint: "198.18.1.4:8080"}, inspect.Delivered, "default/old",
			"forwarded to pod default/old (endpoint 2 of 3, 33 % of new connections)", "classify guard return conntrack service route isolation identity sender egress-admin egress ingress-admin ingress commit masquerade reply output"},
		{"an endpoint elsewhere", inspect.Question{From: "default/web-0", To: "198.19.0.10", Proto: "tcp", Port: 80, Endpoint: "198.18.2.9:8080"}, inspect.Tunnelled, "beta", "endpoint 3 of 3", ""},
		{"a pod that is its own endpoint", inspect.Question{From: "default/web-0", To: "service/default/web:http", Endpoint: "198.18.1.2:8080"}, inspect.Delivered, "default/web-0", "forwarded back to pod default/web-0", ""},
		{"a node port", inspect.Question{From: "host", To: "198.51.100.1", Source: "203.0.113.9", Proto: "tcp", Port: 30080, Endpoint: "198.18.1.2:8080"}, inspect.Delivered, "default/web-0", "endpoint 1 of 3", ""},
		{"a load balancer's address", inspect.Question{From: "host", To: "203.0.113.8", Source: "203.0.113.9", Proto: "tcp", Port: 80, Endpoint: "198.18.2.9:8080"}, inspect.Tunnelled, "beta", "endpoint 3 of 3", ""},
		{"a node port, from a pod", inspect.Question{From: "default/web-0", To: "198.51.100.1", Proto: "tcp", Port: 30080}, inspect.ToHost, "", "to the host", ""},
		{"with session affinity", inspect.Question{From: "default/web-0", To: "service/default/dns"}, "", "", "endpoint ", ""},
		{"without endpoints", inspect.Question{From: "default/web-0", To: "service/default/nobody"}, inspect.Rejected, "", "Service default/nobody has no endpoint", ""},
		{"without endpoints, from the host", inspect.Question{From: "host", To: "service/default/nobody"}, inspect.Rejected, "", "Service default/nobody has no endpoint", ""},
		{"a port that the Service has not", inspect.Question{From: "default/web-0", To: "service/default/web", Proto: "tcp", Port: 81}, inspect.Rejected, "", "no Service has that port", ""},
		{"without an endpoint here, policy Local", inspect.Question{From: "default/web-0", To: "service/default/away"}, inspect.Dropped, "", "no-local-endpoint", ""},
		{"allowed by a policy", inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 5432}, inspect.Delivered, "shop/db", "forwarded to pod shop/db", ""},
		{"denied by a policy", inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80}, inspect.Dropped, "", "ingress-isolation", ""},
		{"denied by a policy, through a Service", inspect.Question{From: "default/web-0", To: "service/shop/db", Proto: "tcp", Port: 80}, inspect.Dropped, "", "ingress-isolation", ""},
		{"denied for egress", inspect.Question{From: "default/old", To: "198.18.2.77", Proto: "tcp", Port: 80}, inspect.Dropped, "", "egress-isolation", ""},
		{"an answer", inspect.Question{From: "shop/db", To: "198.18.1.2", Proto: "tcp", Port: 40000, SourcePort: 5432, Reply: true}, inspect.Delivered, "default/web-0", "forwarded to pod default/web-0", ""},
		{"an answer to the masquerade of the host", inspect.Question{From: "node/beta", Source: "198.18.2.9", To: "198.18.1.0", Proto: "tcp", Port: 40000, SourcePort: 8080, Reply: true, Mark: 4}, inspect.ToHost, "", "to the host", ""},
	} {
		tr, err := s.Trace(t.Context(), c.q)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.outcome != "" && tr.Verdict.Outcome != c.outcome || tr.Verdict.To != c.to && c.outcome != "" || !strings.Contains(tr.Verdict.Sentence, c.says) {
			t.Errorf("%s: %s %q: %s\n%s", c.name, tr.Verdict.Outcome, tr.Verdict.To, tr.Verdict.Sentence, tr.Raw)
		}
		if reads > 0 && c.name != "with session affinity" { // whose look into the table of what was learned is a step without a flow
			t.Errorf("%s: the table was read, for which there was no reason", c.name)
		}
		reads = 0
		var tables []string
		for _, step := range tr.Steps {
			tables = append(tables, step.Table)
			if step.State != "" || step.Large && c.q.From != "default/old" { // old is from before the MTU shrank
				t.Errorf("%s: %+v", c.name, step)
			}
		}
		if way := strings.Join(tables, " "); c.through != "" && way != c.through {
			t.Errorf("%s: through %s, want %s", c.name, way, c.through)
		}
	}
}

// TestATraceThatResumesWithItsTunnelIsNotDropped: where the userspace datapath follows the tunnel, ofproto/trace takes the far
// end that was chosen before connection tracking for the address that the packet came to, and calls it dropped.
func TestATraceThatResumesWithItsTunnelIsNotDropped(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s := n.subject()
	q := inspect.Question{From: "host", To: "203.0.113.8", Source: "203.0.113.9", Proto: "tcp", Port: 80, Endpoint: "198.18.2.9:8080"}
	good, err := s.Trace(t.Context(), q)
	if err != nil || good.Verdict.Outcome != inspect.Tunnelled {
		t.Fatalf("%+v, %v", good.Verdict, err)
	}
	head, rest, ok := strings.Cut(good.Raw, "-> output port is 32768\n")
	before, _, found := strings.Cut(rest, "Datapath actions: ")
	if !ok || !found {
		t.Fatalf("no way through the tunnel in %s", good.Raw)
	}
	misled := head + "-> output port is 32768\n     >> Not tunneling to our own address\n" + before + "Datapath actions: drop\n"
	s.Tracer = func(context.Context) (inspect.Tracer, error) { return recorded(misled), nil }
	q.Endpoint = ""
	tr, err := s.Trace(t.Context(), q)
	if err != nil || tr.Verdict.Outcome != inspect.Tunnelled || tr.Verdict.To != "beta" || !strings.HasSuffix(tr.Datapath, ", and the tunnel, which ofproto/trace leaves out when it resumes") {
		t.Errorf("%+v, datapath %s, %v", tr.Verdict, tr.Datapath, err)
	}
	s.Tracer = func(context.Context) (inspect.Tracer, error) {
		return recorded(strings.ReplaceAll(misled, "198.51.100.2", "198.51.100.1")), nil // to itself, indeed
	}
	if tr, err := s.Trace(t.Context(), q); err != nil || tr.Verdict.Outcome != inspect.Dropped {
		t.Errorf("to the node's own address: %+v, %v", tr.Verdict, err)
	}
}

// TestACityThatHoldsWhatIsWantedVerifies is TestABridgeThatHoldsWhatIsWantedVerifies with Services and policies.
func TestACityThatHoldsWhatIsWantedVerifies(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	v, err := n.subject().Verify(t.Context(), 1500, 3)
	if err != nil {
		t.Fatal(err)
	}
	if v.Sampled+v.Untold != 1500 || v.Untold == 0 || v.Untold > 150 || v.WantedGroups < 4 || v.Differences() != len(v.Verdicts) {
		t.Errorf("sampled %d packets of 1500 less %d, %d groups wanted; flows %+v, groups %+v", v.Sampled, v.Untold, v.WantedGroups, v.Flows, v.Groups)
	}
	for _, d := range v.Verdicts {
		t.Errorf("%s\n  %s\n  expected %s\n  got      %s", d.What, d.Packet, d.Expected, d.Got)
	}
}

// TestVerifyFindsMutationsOfACity does one thing at a time to one flow or group of a node with Services and policies.
func TestVerifyFindsMutationsOfACity(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	r := rand.New(rand.NewPCG(20261125, 2))
	all, groups, s := n.desired.Flows(), n.desired.Groups(), n.subject()
	kinds := map[string]int{}
	for i := range 200 {
		if i%4 == 0 {
			g := groups[r.IntN(len(groups))]
			what, bundle := mutateGroup(r, g)
			if err := n.sw.Apply(t.Context(), bundle); err != nil {
				t.Fatalf("%s of %s: %v", what, g, err)
			}
			kinds["group "+what]++
			v, err := s.Verify(t.Context(), 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			// A group that is deleted takes the flows that lead to it along (OpenFlow 1.5 §6.7).
			if len(v.Groups) != 1 || v.Groups[0].Wanted != g.String() || v.Groups[0].Owner != g.Owner || len(v.Flows) > 0 && what != "deleted" {
				t.Errorf("mutation %d (%s of %s): groups %+v, flows %+v", i, what, g, v.Groups, v.Flows)
			}
			n.repair()
			continue
		}
		f := all[r.IntN(len(all))]
		m := mutateCity(r, f)
		n.finds(s, i, f, m)
		kinds[strings.Fields(m.what)[0]]++
		n.repair()
	}
	t.Logf("mutations: %v", kinds)
	if len(kinds) != 8 {
		t.Errorf("kinds of mutations: %v, want four of flows and four of groups", kinds)
	}
}

// mutateCity is mutate for flows whose fields depend on each other in more ways: weakening is by priority alone.
func mutateCity(r *rand.Rand, f flows.Flow) mutation {
	g, del := f, fmt.Sprintf("flow delete cookie=%#x/-1\n", f.Cookie)
	switch r.IntN(4) {
	case 0:
		return mutation{"deleted", del, f.Key()}
	case 1:
		g.Priority = uint16(1 + (int(f.Priority)+1+r.IntN(500))%1000)
		return mutation{"moved", del + "flow add " + g.String() + "\n", g.Key()}
	case 2:
		g.Actions = flows.Actions{{Verb: "output", Arg: fmt.Sprint(1 + r.IntN(3))}}
		return mutation{"redirected", "flow add " + g.String() + "\n", g.Key()}
	}
	g.Actions = nil
	if len(f.Actions) == 0 {
		g.Actions = flows.Actions{{Verb: "IN_PORT"}}
	}
	return mutation{"changed", "flow add " + g.String() + "\n", g.Key()}
}

// mutateGroup deletes a group, or changes one of its buckets.
func mutateGroup(r *rand.Rand, g *flows.Group) (what, bundle string) {
	c := *g
	c.Buckets = slices.Clone(g.Buckets)
	i := r.IntN(len(c.Buckets))
	switch r.IntN(4) {
	case 0:
		return "deleted", fmt.Sprintf("group delete group_id=%d\n", g.ID)
	case 1:
		c.Buckets[i].Weight += 7
		what = "weight"
	case 2:
		text := strings.NewReplacer(":8080)", ":8081)", ":5432)", ":5433)", ":80)", ":82)", "0x14e9", "0x14ea").Replace(c.Buckets[i].Actions.String())
		actions, err := flows.ParseActions(text)
		if err != nil {
			panic(err)
		}
		c.Buckets[i].Actions, what = actions, "endpoint"
	case 3:
		c.Buckets, what = slices.Delete(c.Buckets, i, i+1), "bucket"
	}
	return what, flows.Delta{AddGroups: []*flows.Group{&c}}.Bundle()
}

// TestWhyNamesServicesAndPolicies reads the sentences.
func TestWhyNamesServicesAndPolicies(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s := n.subject()
	for _, c := range []struct {
		name    string
		q       inspect.Question
		allowed bool
		because string
		remedy  string
	}{
		{"no endpoints", inspect.Question{From: "default/web-0", To: "service/default/nobody"}, false,
			"Service default/nobody (service/default/nobody:443) has no endpoint that is ready: its EndpointSlices list none of this family", "a pod that its selector selects has to be ready"},
		{"policy Local", inspect.Question{From: "default/web-0", To: "service/default/away"}, false,
			"internalTrafficPolicy of Service default/away is Local, and none of its endpoints that are ready is on node alpha", "has to be Cluster"},
		{"no such port", inspect.Question{From: "default/web-0", To: "service/default/web", Proto: "tcp", Port: 81}, false, "no Service has TCP port 81 there", "ask for a port that the Service has"},
		{"denied by the port", inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80}, false,
			"pod shop/db is isolated for ingress by shop/db-allow, and none of their rules allows it; none of their 2 rules matches: shop/db-allow ingress 0: port tcp 80 is not in {tcp 5432}; shop/db-allow ingress 1: 198.18.1.2 (pod default/web-0) is not in {203.0.113.0/24}",
			"an ingress rule of one of shop/db-allow, or of another NetworkPolicy for the pod, has to allow TCP port 80 from 198.18.1.2 (pod default/web-0)"},
		{"denied through a Service", inspect.Question{From: "default/web-0", To: "service/shop/db:http"}, false, "is isolated for ingress by shop/db-allow", "TCP port 80"},
		{"denied for egress", inspect.Question{From: "default/old", To: "198.18.2.77", Proto: "udp", Port: 7}, false, "pod default/old is isolated for egress by default/old-egress", "an egress rule"},
		{"allowed by a rule", inspect.Question{From: "default/web-0", To: "service/shop/db:sql"}, true, "Service shop/db sends it to 198.18.1.3 (pod shop/db) port 5432; pod shop/db of node alpha has the address 198.18.1.3; networkpolicy/shop/db-allow/ingress/0 allows it for pod shop/db", "nothing has to change"},
	} {
		why, err := s.Why(t.Context(), c.q)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if why.Allowed != c.allowed || !strings.Contains(why.Because, c.because) || !strings.Contains(why.Remedy, c.remedy) || len(why.Notes) > 0 {
			t.Errorf("%s: allowed %t\n  because %s\n  want    %s\n  change  %s\n  notes %q", c.name, why.Allowed, why.Because, c.because, why.Remedy, why.Notes)
		}
	}
	// Somebody opens the pod behind the agent's back: the bridge is believed, and the difference is told.
	for _, f := range n.desired.Of("pod/shop/db") {
		if f.Drop == flows.DropIngress {
			n.apply(fmt.Sprintf("flow delete cookie=%#x/-1\n", f.Cookie))
		}
	}
	why, err := s.Why(t.Context(), inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80})
	if err != nil || !why.Allowed || !strings.Contains(strings.Join(why.Notes, " "), "the policies say otherwise than the bridge, which lets it pass: pod shop/db is isolated") {
		t.Errorf("an open pod: %+v, %v", why, err)
	}
}

// TestWhyIsCausalForServicesAndPolicies takes away each Service, policy and rule that an answer names.
func TestWhyIsCausalForServicesAndPolicies(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s := n.subject()
	removed := map[string]int{}
	for _, q := range []inspect.Question{
		{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80},
		{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 5432},
		{From: "default/web-0", To: "198.19.0.32", Proto: "tcp", Port: 5432},
		{From: "default/web-0", To: "198.19.0.99", Proto: "tcp", Port: 443},
		{From: "default/old", To: "198.18.2.77", Proto: "tcp", Port: 80},
		{From: "default/old", To: "198.18.1.2", Proto: "tcp", Port: 80},
	} {
		before, err := s.Why(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, cause := range before.Causes {
			kind, name, _ := strings.Cut(string(cause), "/")
			var w *flows.World
			switch kind {
			case "service":
				service, _, _ := strings.Cut(name[strings.Index(name, "/")+1:], ":")
				w = city(t, "kind: Service\nmetadata: {name: "+service+",")
			case "networkpolicy":
				words := strings.Split(name, "/")
				w = city(t, "kind: NetworkPolicy\nmetadata: {name: "+words[1]+",")
				if len(words) > 2 { // a rule: the policy stays
					w = city(t)
					gone := flows.Owner(cause)
					p := *w.Policy
					p.Rules = p.Rules.With(nil, []string{string(gone)})
					w.Policy = &p
				}
			default:
				continue // TestWhyIsCausal
			}
			removed[kind]++
			n.become(w)
			after, err := s.Why(t.Context(), q)
			if err == nil && after.Outcome == before.Outcome && after.To == before.To && after.Reason == before.Reason && after.Owner == before.Owner {
				t.Errorf("%s is %q because of %s, and without that %q as well", before.What, before.Sentence, cause, after.Sentence)
			}
			n.become(city(t))
		}
	}
	if removed["service"] < 2 || removed["networkpolicy"] < 4 {
		t.Errorf("removed %v", removed)
	}
}

// TestASavedCityIsTheSame: a World that was saved in a report compiles to the same flows and groups.
func TestASavedCityIsTheSame(t *testing.T) {
	w := city(t)
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var again flows.World
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	list := func(d *flows.Desired) (out []string) {
		for _, f := range d.Flows() {
			out = append(out, f.String())
		}
		for _, g := range d.Groups() {
			out = append(out, g.String())
		}
		return out
	}
	was, is := list(compiled(t, w)), list(compiled(t, &again))
	if !slices.Equal(was, is) || len(was) < 200 {
		t.Errorf("%d flows and groups were saved, %d read back differ:\n%s", len(was), len(is), strings.Join(is, "\n"))
	}
}
