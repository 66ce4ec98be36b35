package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// TestAPolicyThatIsWrongNeverOpens: what an API server would refuse, but may arrive from manifests or an older one,
// isolates the pods that it selects, allows nobody, and is named by an Event with the field and its value.
func TestAPolicyThatIsWrongNeverOpens(t *testing.T) {
	x := newLimited(t)
	a := flows.PodOwner("shop", "a", "eth0")
	address := x.pods[a][0].Addresses[0]
	admin := x.table(flows.EgressAdmin)
	const np = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: bad}\nspec: {podSelector: {matchLabels: {app: a}}, "
	const cnp = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: bad}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, "
	for _, c := range []struct{ what, manifest, says string }{
		{"invalid CIDR", np + "ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/33}}]}]}\n", `ipBlock.cidr "203.0.113.0/33" is not a CIDR`},
		{"except outside its block", np + "ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [198.51.100.0/28]}}]}]}\n", "ipBlock.except[0] 198.51.100.0/28 is not within 203.0.113.0/24"},
		{"endPort below port", np + "ingress: [{ports: [{port: 80, endPort: 79}]}]}\n", "endPort 79 is below port 80"},
		{"endPort with a name", np + "ingress: [{ports: [{port: http, endPort: 79}]}]}\n", `endPort needs a port that is a number, not the name "http"`},
		{"unknown protocol", np + "ingress: [{ports: [{protocol: ICMP, port: 80}]}]}\n", `protocol "ICMP" is none of TCP, UDP, SCTP`},
		{"empty peer", np + "ingress: [{from: [{}]}]}\n", "the peer is empty"},
		{"unknown operator", strings.Replace(np, "{matchLabels: {app: a}}", "{matchExpressions: [{key: app, operator: Like, values: [a]}]}", 1) + "ingress: [{}]}\n", `operator "Like" of key "app" is unknown`},
		{"a network that is none", cnp + "egress: [{action: Deny, to: [{networks: [203.0.113.0/33]}]}]}\n", "203.0.113.0/33"},
	} {
		x.write(c.manifest)
		key := source.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "bad"}
		from, to := netip.MustParseAddr("203.0.113.7"), address
		if strings.HasPrefix(c.manifest, cnp[:30]) {
			key = source.Key{Kind: "ClusterNetworkPolicy", Name: "bad"}
			from, to = to, from
		}
		x.until(c.what+": an Event says "+c.says, func() bool { return x.event(key, "TwillNotUsed", c.says) })
		x.until(c.what+": it is in force", func() bool { return len(x.drops(a)) > 0 || x.table(flows.EgressAdmin) > admin })
		var w *flows.World
		x.loop.view(func(_ *flows.Desired, now *flows.World, _ Applied) { w = now })
		d := flows.NewJudge(w).Decide(flows.Tuple{Source: from, Destination: to, Protocol: 6, Port: 80})
		if d.Allowed {
			t.Errorf("%s: %s", c.what, d.Words)
		}
		x.write()
		x.until(c.what+": gone", func() bool { return len(x.drops(a)) == 0 && x.table(flows.EgressAdmin) == admin })
	}
}
