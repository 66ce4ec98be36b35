package inspect_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/bridgetest"
)

// cityManifests are the objects of a city: alpha's pods and others, with Services and policies.
const cityManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kubernetes.io/metadata.name: shop}}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, uid: uid-web-0, labels: {app: web}}
spec: {nodeName: alpha}
status: {phase: Running, podIPs: [{ip: 198.18.1.2}, {ip: "2001:db8:1:1::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, uid: uid-db, labels: {app: db}}
spec: {nodeName: alpha}
status: {phase: Running, podIPs: [{ip: 198.18.1.3}, {ip: "2001:db8:1:1::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: default, uid: uid-old, labels: {app: old}}
spec: {nodeName: alpha}
status: {phase: Running, podIPs: [{ip: 198.18.1.4}, {ip: "2001:db8:1:1::4"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: default, uid: uid-far, labels: {app: web}}
spec: {nodeName: beta}
status: {phase: Running, podIPs: [{ip: 198.18.2.9}, {ip: "2001:db8:1:2::9"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-allow, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
  - from: [{ipBlock: {cidr: 203.0.113.0/24}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: old-egress, namespace: default}
spec:
  podSelector: {matchLabels: {app: old}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: web}}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, uid: uid-web}
spec:
  type: LoadBalancer
  clusterIPs: [198.19.0.10, "2001:db8:2::a"]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.8}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [198.18.1.2], nodeName: alpha}
- {addresses: [198.18.1.4], nodeName: alpha}
- {addresses: [198.18.2.9], nodeName: beta}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, uid: uid-sdb}
spec: {clusterIPs: [198.19.0.32], ports: [{name: sql, port: 5432}, {name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-4, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}, {name: http, port: 80}]
endpoints: [{addresses: [198.18.1.3], nodeName: alpha}]
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: default, uid: uid-dns}
spec:
  clusterIPs: [198.19.0.53]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 30}}
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-4, namespace: default, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [198.18.1.4], nodeName: alpha}, {addresses: [198.18.2.11], nodeName: beta}]
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: default, uid: uid-away}
spec: {clusterIPs: [198.19.0.77], internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: away-4, namespace: default, labels: {kubernetes.io/service-name: away}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [198.18.2.9], nodeName: beta}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default, uid: uid-nobody}
spec: {clusterIPs: [198.19.0.99], ports: [{port: 443}]}
`

// city is alpha with Services and policies. without leaves out the documents that have this text.
func city(t testing.TB, without ...string) *flows.World {
	t.Helper()
	var docs []string
	for doc := range strings.SplitSeq(cityManifests, "\n---\n") {
		out := false
		for _, x := range without {
			out = out || strings.Contains(doc, x)
		}
		if !out {
			docs = append(docs, doc)
		}
	}
	return inhabited(t, alpha(), strings.Join(docs, "\n---\n"))
}

// inhabited is a World with what manifests say of Services and policies.
func inhabited(t testing.TB, w *flows.World, manifests string) *flows.World {
	t.Helper()
	m := bridgetest.Manifests(t, manifests)
	if p := m.Problems(); len(p) > 0 {
		t.Fatal(p)
	}
	ix := policy.NewIndex()
	for _, kind := range source.PolicyKinds() {
		for _, key := range m.Keys(kind) {
			source.Tell(ix, key, m.Get(key))
		}
	}
	local := map[string]policy.Local{}
	for _, list := range w.Pods {
		for _, a := range list {
			local[a.Namespace+"/"+a.Pod] = policy.Local{Namespace: a.Namespace, Pod: a.Pod, UID: a.UID}
		}
	}
	ix.SetLocal(local)
	w.Policy = ix.Policy()
	w.Services = source.NewJoiner([]netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:db8:2::/108")}).Join(m.Services())
	return w
}
