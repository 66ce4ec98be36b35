package inspect_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

// town is a cluster whose Services and policies change at random, as manifests by KIND/NAMESPACE/NAME.
type town struct{ docs map[string]string }

// change does one thing that happens in a cluster, and names it.
func (x *town) change(r *rand.Rand, w *flows.World) string {
	ns, n := fmt.Sprintf("ns%d", r.IntN(3)), r.IntN(8)
	put := func(kind, key, doc string) string {
		if _, there := x.docs[kind+"/"+key]; there && r.IntN(3) == 0 {
			delete(x.docs, kind+"/"+key)
			return kind + " gone"
		}
		x.docs[kind+"/"+key] = doc
		return kind
	}
	switch r.IntN(10) {
	case 0, 1:
		return put("Service", fmt.Sprintf("%s/svc-%d", ns, n), x.service(r, w, ns, n))
	case 2, 3:
		return put("NetworkPolicy", fmt.Sprintf("%s/np-%d", ns, n), networkPolicy(r, ns, n))
	case 4:
		return put("ClusterNetworkPolicy", fmt.Sprintf("/cnp-%d", n), clusterPolicy(r, n))
	}
	return change(r, w)
}

// service is a Service with its EndpointSlice: pods of this node, of others, or nobody.
func (x *town) service(r *rand.Rand, w *flows.World, ns string, n int) string {
	var endpoints []string
	for _, o := range slices.Sorted(maps.Keys(w.Pods)) {
		if r.IntN(6) == 0 {
			endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], nodeName: alpha}", w.Pods[o][0].Addresses[0]))
		}
	}
	for range r.IntN(3) {
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [198.18.%d.%d], nodeName: peer-%d}", 4+r.IntN(60), 2+r.IntN(200), 4+r.IntN(60)))
	}
	extra := []string{"", "sessionAffinity: ClientIP, ", "internalTrafficPolicy: Local, ", "type: NodePort, externalTrafficPolicy: Local, ", "externalIPs"}[r.IntN(5)]
	port, number := fmt.Sprintf("port: %d", 80+r.IntN(3)), int(ns[2]-'0')*16+n
	if strings.Contains(extra, "NodePort") {
		port += fmt.Sprintf(", nodePort: %d", 30000+number)
	}
	if strings.Contains(extra, "externalIPs") {
		extra = fmt.Sprintf("externalIPs: [203.0.113.%d], ", 100+number)
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: svc-%d, namespace: %s, uid: uid-%s-%d}
spec: {%sclusterIPs: [198.19.0.%d], ports: [{name: a, %s, protocol: %s}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: svc-%d-x, namespace: %s, labels: {kubernetes.io/service-name: svc-%d}}
addressType: IPv4
ports: [{name: a, port: 8080, protocol: TCP}, {name: a, port: 8080, protocol: UDP}]
endpoints: [%s]
`, n, ns, ns, n, extra, 10+number, port, []string{"TCP", "UDP"}[r.IntN(2)], n, ns, n, strings.Join(endpoints, ", "))
}

func networkPolicy(r *rand.Rand, ns string, n int) string {
	peer := []string{"{podSelector: {}}", "{namespaceSelector: {}, podSelector: {matchLabels: {app: a1}}}", "{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}"}[r.IntN(3)]
	rule, types := fmt.Sprintf("ingress: [{from: [%s], ports: [{port: %d}]}]", peer, 80+r.IntN(3)), "[Ingress]"
	if r.IntN(2) == 0 {
		rule, types = fmt.Sprintf("egress: [{to: [%s]}]", peer), "[Egress]"
	}
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np-%d, namespace: %s}
spec: {podSelector: {matchLabels: {app: a%d}}, policyTypes: %s, %s}
`, n, ns, r.IntN(4), types, rule)
}

func clusterPolicy(r *rand.Rand, n int) string {
	return fmt.Sprintf(`apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: cnp-%d}
spec:
  tier: %s
  priority: %d
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: a%d}}}}
  ingress: [{name: one, action: %s, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: ns%d}}}]}]
`, n, []string{"Admin", "Baseline"}[r.IntN(2)], n, r.IntN(4), []string{"Accept", "Deny"}[r.IntN(2)], r.IntN(3))
}

// fill resolves what the objects say, for the pods of a World.
func (x *town) fill(t *testing.T, w *flows.World) {
	t.Helper()
	var docs []string
	for _, key := range slices.Sorted(maps.Keys(x.docs)) {
		docs = append(docs, x.docs[key])
	}
	for _, ns := range []string{"default", "shop", "ns0", "ns1", "ns2"} {
		docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {kubernetes.io/metadata.name: %s}}\n", ns, ns))
	}
	for _, list := range w.Pods {
		for _, a := range list {
			docs = append(docs, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s, uid: %s, labels: {app: a%d}}\nstatus: {phase: Running, podIPs: [{ip: %s}, {ip: %q}]}\n",
				a.Pod, a.Namespace, a.UID, a.OFPort%4, a.Addresses[0], a.Addresses[1]))
		}
	}
	inhabited(t, w, strings.Join(docs, "---\n"))
}
