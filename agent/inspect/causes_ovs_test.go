package inspect_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

const (
	denyTelnet = `
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-telnet}
spec:
  tier: Admin
  priority: 5
  subject: {namespaces: {}}
  ingress: [{name: telnet, action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}]
`
	acceptMetrics = `
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: metrics}
spec:
  tier: Admin
  priority: 6
  subject: {namespaces: {}}
  ingress: [{name: scrape, action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 9090}}}]}]
`
	ranged = `
---
apiVersion: v1
kind: Service
metadata: {name: vpn, namespace: default}
spec: {type: LoadBalancer, clusterIPs: [198.19.0.44], loadBalancerSourceRanges: [192.0.2.0/24], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.44}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: vpn-4, namespace: default, labels: {kubernetes.io/service-name: vpn}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [198.18.1.2], nodeName: alpha}]
`
)

// TestWhatWhyNamesIsTheCause: for each kind of answer, the object or rule that it names is taken away, or what its remedy
// asks for is done, and nothing else; then the answer is another one.
func TestWhatWhyNamesIsTheCause(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3, 4)
	s := n.subject()
	with := func(extra string, replace ...string) *flows.World {
		return inhabited(t, alpha(), strings.NewReplacer(replace...).Replace(cityManifests)+extra)
	}
	slice := func(service, endpoint string) string {
		return "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: more, namespace: default, labels: {kubernetes.io/service-name: " + service +
			"}}\naddressType: IPv4\nports: [{port: 8443}]\nendpoints: [" + endpoint + "]\n"
	}
	peer := func(change func(*flows.Node)) *flows.World {
		w := with("")
		delta := nodeObject("delta", 9)
		change(&delta)
		w.Peers["delta"] = delta
		return w
	}
	metricsRule := with(acceptMetrics)
	p := *metricsRule.Policy
	p.Rules = p.Rules.With(nil, []string{"clusternetworkpolicy/metrics/ingress/0"})
	metricsRule.Policy = &p
	for _, c := range []struct {
		name    string
		world   *flows.World // nil is the city
		q       inspect.Question
		outcome string // and what it is because of
		because string
		cause   flows.Owner // one of the causes; empty where no object is the cause
		remedy  string
		after   *flows.World // without the cause, or with the remedy
		ask     *inspect.Question
		then    string
	}{
		{name: "a node port", q: inspect.Question{From: "host", To: "198.51.100.1", Source: "203.0.113.9", Proto: "tcp", Port: 30080, Endpoint: "198.18.1.2:8080"},
			outcome: inspect.Delivered, because: "Service default/web sends it to 198.18.1.2", cause: "service/default/web:http",
			after: with("", ", nodePort: 30080", ""), ask: &inspect.Question{From: "host", To: "198.51.100.1", Source: "203.0.113.9", Proto: "tcp", Port: 30080}, then: "dropped gateway-loop"},
		{name: "a load balancer's address", q: inspect.Question{From: "host", To: "203.0.113.8", Source: "203.0.113.9", Proto: "tcp", Port: 80, Endpoint: "198.18.1.2:8080"},
			outcome: inspect.Delivered, because: "Service default/web sends it to", cause: "service/default/web:http",
			after: with("", "{loadBalancer: {ingress: [{ip: 203.0.113.8}]}}", "{}"), ask: &inspect.Question{From: "host", To: "203.0.113.8", Source: "203.0.113.9", Proto: "tcp", Port: 80}, then: "dropped no-route"},
		{name: "a client outside of the source ranges", world: with(ranged), q: inspect.Question{From: "host", To: "203.0.113.44", Source: "203.0.113.9", Proto: "tcp", Port: 80},
			outcome: "dropped source-range", because: "203.0.113.9 is in none of the loadBalancerSourceRanges of Service default/vpn", cause: "service/default/vpn:80", remedy: "loadBalancerSourceRanges",
			after: inhabited(t, alpha(), cityManifests+strings.ReplaceAll(ranged, "192.0.2.0/24", "203.0.113.0/28")), then: "delivered"},
		{name: "no endpoint", q: inspect.Question{From: "default/web-0", To: "service/default/nobody"},
			outcome: inspect.Rejected, because: "Service default/nobody (service/default/nobody:443) has no endpoint that is ready", cause: "service/default/nobody:443", remedy: "has to be ready",
			after: with(slice("nobody", "{addresses: [198.18.1.4], nodeName: alpha}")), then: "delivered"},
		{name: "an endpoint that is not ready", world: with(slice("nobody", "{addresses: [198.18.1.4], nodeName: alpha, conditions: {ready: false}}")), q: inspect.Question{From: "default/web-0", To: "service/default/nobody"},
			outcome: inspect.Rejected, because: "198.18.1.4 is not ready", cause: "service/default/nobody:443", remedy: "has to be ready",
			after: with(slice("nobody", "{addresses: [198.18.1.4], nodeName: alpha, conditions: {ready: true}}")), then: "delivered"},
		{name: "no endpoint here, policy Local", q: inspect.Question{From: "default/web-0", To: "service/default/away"},
			outcome: "dropped no-local-endpoint", because: "internalTrafficPolicy of Service default/away is Local", cause: "service/default/away:80", remedy: "internalTrafficPolicy has to be Cluster",
			after: with("", "internalTrafficPolicy: Local", "internalTrafficPolicy: Cluster"), then: "tunnelled"},
		{name: "a port that the Service has not", q: inspect.Question{From: "default/web-0", To: "service/default/nobody", Proto: "tcp", Port: 80},
			outcome: inspect.Rejected, because: "no Service has TCP port 80 there", remedy: "ask for a port that the Service has",
			after: inhabited(t, alpha(), strings.Replace(cityManifests, "ports: [{port: 443}]", "ports: [{port: 80}]", 1)+slice("nobody", "{addresses: [198.18.1.4], nodeName: alpha}")), then: "delivered"},
		{name: "denied by a ClusterNetworkPolicy", world: with(denyTelnet), q: inspect.Question{From: "default/old", To: "default/web-0", Proto: "tcp", Port: 23},
			outcome: "dropped ingress-denied", because: "clusternetworkpolicy/no-telnet/ingress/0 denies it for pod default/web-0", cause: "clusternetworkpolicy/no-telnet", remedy: "clusternetworkpolicy/no-telnet has to be changed or removed",
			after: with(""), then: "delivered"},
		{name: "accepted by a ClusterNetworkPolicy", world: with(acceptMetrics), q: inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 9090},
			outcome: inspect.Delivered, because: "clusternetworkpolicy/metrics/ingress/0 allows it for pod shop/db", cause: "clusternetworkpolicy/metrics",
			after: with(""), then: "dropped ingress-isolation"},
		{name: "accepted by a rule of it", world: with(acceptMetrics), q: inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 9090},
			outcome: inspect.Delivered, because: "clusternetworkpolicy/metrics/ingress/0 allows it", cause: "clusternetworkpolicy/metrics/ingress/0",
			after: metricsRule, then: "dropped ingress-isolation"},
		{name: "isolated by a NetworkPolicy", q: inspect.Question{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80},
			outcome: "dropped ingress-isolation", because: "port tcp 80 is not in {tcp 5432}", cause: "networkpolicy/shop/db-allow", remedy: "has to allow TCP port 80 from 198.18.1.2",
			after: with("", "ports: [{port: 5432}]\n", "ports: [{port: 80}]\n"), then: "delivered"},
		{name: "isolated for egress", q: inspect.Question{From: "default/old", To: "198.18.2.77", Proto: "tcp", Port: 80},
			outcome: "dropped egress-isolation", because: "pod default/old is isolated for egress by default/old-egress", cause: "networkpolicy/default/old-egress", remedy: "an egress rule of one of default/old-egress",
			after: with("", "- to: [{podSelector: {matchLabels: {app: web}}}]", "- to: [{ipBlock: {cidr: 198.18.2.77/32}}]"), then: "tunnelled"},
		{name: "a source that is not the pod's", q: inspect.Question{From: "default/web-0", To: "198.18.1.4", Source: "203.0.113.9"},
			outcome: "dropped spoofed", because: "pod default/web-0 sent from 203.0.113.9; it may send only from 198.18.1.2 and 2001:db8:1:1::2", cause: "pod/default/web-0", remedy: "has to use an address of its own",
			ask: &inspect.Question{From: "default/web-0", To: "198.18.1.4", Source: "198.18.1.2"}, then: "delivered"},
		{name: "no route", q: inspect.Question{From: "host", To: "203.0.113.99", Source: "198.18.1.1"},
			outcome: "dropped no-route", because: "203.0.113.99 is no address of a pod or node", remedy: "has to go to a pod or node",
			after: peer(func(d *flows.Node) { d.Addresses = append(d.Addresses, netip.MustParseAddr("203.0.113.99")) }), then: "tunnelled"},
		{name: "a podCIDR that no Node has", q: inspect.Question{From: "default/web-0", To: "198.18.77.1"},
			outcome: "dropped no-such-node", because: "198.18.77.1 is in the cluster's range 198.18.0.0/16, and no Node known here has a podCIDR that contains it", remedy: "a Node with that podCIDR has to exist",
			after: peer(func(d *flows.Node) { d.PodCIDRs = prefixes("198.18.77.0/24") }), then: "tunnelled"},
		{name: "an address that no pod has", q: inspect.Question{From: "default/web-0", To: "198.18.1.99"},
			outcome: "dropped no-such-pod", because: "198.18.1.99 is in podCIDR 198.18.1.0/24 of Node alpha, and no pod attached there has it", cause: "node/alpha", remedy: "a pod with that address has to run on node alpha",
			after: func() *flows.World {
				w := with("")
				a := attachment(4, "default", "new", 99)
				w.Pods[a.Owner()] = []flows.Attachment{a}
				return w
			}(), then: "delivered"},
		{name: "tunnel packets of a pod", q: inspect.Question{From: "default/web-0", To: "198.51.100.2", Proto: "udp", Port: 6081},
			outcome: "dropped tunnel-injection", because: "is the tunnel's", remedy: "set --tunnel-port of every agent to a port that no pod needs",
			after: func() *flows.World { w := with(""); w.Tunnel.Port = 6082; return w }(), then: "tunnelled"},
	} {
		if c.world == nil {
			c.world = with("")
		}
		n.become(c.world)
		why, err := s.Why(t.Context(), c.q)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if outcome(why) != c.outcome || !strings.Contains(why.Because, c.because) || !strings.Contains(why.Remedy, c.remedy) || len(why.Notes) > 0 {
			t.Errorf("%s: %s, %s\n  because %s\n  want    %s\n  change  %s\n  notes %q", c.name, outcome(why), why.Sentence, why.Because, c.because, why.Remedy, why.Notes)
		}
		if c.cause != "" && !slices.Contains(why.Causes, c.cause) {
			t.Errorf("%s: %s is not among the causes %v", c.name, c.cause, why.Causes)
		}
		if c.after != nil {
			n.become(c.after)
		}
		ask := c.q
		if c.ask != nil {
			ask = *c.ask
		}
		after, err := s.Why(t.Context(), ask)
		if err != nil || outcome(after) != c.then {
			t.Errorf("%s: then %s, want %s: %s (%v)", c.name, outcome(after), c.then, after.Sentence, err)
		}
	}
}

// outcome is what became of a packet, with the reason of a drop.
func outcome(w inspect.Why) string {
	return strings.TrimSpace(w.Outcome + " " + string(w.Reason))
}

// TestANoteOfWhyGoesWithItsCause: a packet that is too large, and an agent that is behind.
func TestANoteOfWhyGoesWithItsCause(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	s := n.subject()
	notes := func(q inspect.Question) string {
		t.Helper()
		why, err := s.Why(t.Context(), q)
		if err != nil || !why.Allowed {
			t.Fatalf("%+v, %v", why, err)
		}
		return strings.Join(why.Notes, "\n")
	}
	q := inspect.Question{From: "default/web-0", To: "198.18.2.7", Proto: "tcp", Port: 80, Size: 1451}
	if said := notes(q); !strings.Contains(said, "a packet of 1451 bytes is larger than the 1450 bytes that fit through the tunnel") {
		t.Errorf("too large: %q", said)
	}
	q.Size = 1450
	if said := notes(q); said != "" {
		t.Errorf("just fits: %q", said)
	}
	q.Size = 1451
	wide := alpha()
	wide.MTU = 8950
	n.become(wide)
	if said := notes(q); said != "" {
		t.Errorf("with a larger MTU: %q", said)
	}
	n.behind = errors.New("ovs-vswitchd went away")
	if said := notes(q); !strings.Contains(said, "the agent is behind, so the bridge may not yet do what is wanted: ovs-vswitchd went away") {
		t.Errorf("behind: %q", said)
	}
	n.behind = nil
	if said := notes(q); said != "" {
		t.Errorf("in step again: %q", said)
	}
}
