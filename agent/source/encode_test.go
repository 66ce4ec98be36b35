package source

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent/policy"
)

// everything is a manifest of each kind with all that is read of it, and of much that cannot be used.
const everything = `
apiVersion: v1
kind: Node
metadata: {name: alpha, uid: uid-alpha, creationTimestamp: "2026-01-02T03:04:05Z", labels: {topology.kubernetes.io/zone: a, empty: ""}, annotations: {note: hidden-note}}
spec: {podCIDRs: [198.18.1.0/24, "2001:db8:42:1::/64"], providerID: hidden-provider}
status: {addresses: [{type: InternalIP, address: 198.51.100.1}, {type: InternalIP, address: "2001:db8:100::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: bare}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kubernetes.io/metadata.name: shop, team: "7"}}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, uid: uid-db, labels: {app: db, tier: "1"}, creationTimestamp: "2026-01-02T03:04:06Z", annotations: {secret-note: hidden-annotation}}
spec:
  nodeName: alpha
  initContainers: [{name: side, image: hidden-image, ports: [{name: side, containerPort: 9, protocol: UDP}]}]
  containers: [{name: a, image: hidden-image, args: [hidden-argument], env: [{name: PASSWORD, value: hidden-value}], ports: [{name: sql, containerPort: 5432}, {name: assoc, containerPort: 7, protocol: SCTP}, {containerPort: 8}]}]
status: {phase: Running, podIPs: [{ip: 198.18.1.3}, {ip: "2001:db8:42:1::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: etcd-alpha, namespace: default, uid: uid-e, annotations: {kubernetes.io/config.hash: abc}, deletionTimestamp: "2026-01-02T03:05:06Z"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, uid: uid-web, labels: {app: web}}
spec:
  type: LoadBalancer
  clusterIPs: [198.19.0.10, "2001:db8:2::a"]
  externalIPs: [203.0.113.77]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 31000
  loadBalancerSourceRanges: [203.0.113.0/24, nowhere]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 30}}
  ports: [{name: http, port: 80, nodePort: 30080, targetPort: web}, {name: dns, port: 53, protocol: UDP}, {name: bad, port: 0}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: 203.0.113.9, ipMode: Proxy}, {hostname: lb.example}]}}
---
apiVersion: v1
kind: Service
metadata: {name: port, namespace: default}
spec: {type: NodePort, clusterIP: 198.19.0.11, sessionAffinity: ClientIP, ports: [{port: 80, nodePort: 30081, protocol: SCTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced, namespace: default}
spec: {type: LoadBalancer, clusterIP: 198.19.0.13, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: default, uid: uid-h}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: default, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {clusterIP: 198.19.0.12, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: default}
spec: {type: ExternalName, externalName: web.example}
---
apiVersion: v1
kind: Service
metadata: {name: unallocated, namespace: default}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web, other: label}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: any}]
endpoints:
- {addresses: [198.18.1.2], nodeName: alpha, zone: a, hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: alpha}]}}
- {addresses: [198.18.1.4], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Pod, name: hidden-target}}
- {addresses: [198.18.1.5], conditions: {ready: false}}
- {addresses: ["2001:db8::5"]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ["2001:db8:42:1::2"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: nobody, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, namespace: default}
addressType: FQDN
endpoints: [{addresses: [web.example]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: shop, uid: uid-np}
spec:
  podSelector: {matchLabels: {app: db}, matchExpressions: [{key: app, operator: In, values: [db]}, {key: tier, operator: NotIn, values: ["2", "1"]}, {key: has, operator: Exists}, {key: hasnot, operator: DoesNotExist}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - {}
  - {from: [{podSelector: {}}], ports: [{}]}
  - {from: [{namespaceSelector: {matchLabels: {team: "7"}}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}, {port: 80, endPort: 80}, {port: 80, endPort: 90, protocol: UDP}, {protocol: SCTP}]}
  egress:
  - to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26, 203.0.113.3/32]}}, {ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:8000::/33"]}}, {ipBlock: {cidr: 0.0.0.0/0, except: [0.0.0.0/1, 128.0.0.0/1]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: implied, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: egress, namespace: shop}
spec: {podSelector: {}, policyTypes: [Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: broken-selector, namespace: shop}
spec: {podSelector: {matchExpressions: [{key: a, operator: Like}]}, ingress: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: broken-rules, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Sideways]
  ingress: [{from: [{}]}, {from: [{ipBlock: {cidr: 203.0.113.0/33}}]}, {ports: [{port: 70000}, {protocol: UDP}]}, {ports: [{protocol: IPX}]}, {ports: [{endPort: 7}]}, {ports: [{port: web, endPort: 7}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admin, uid: uid-cnp}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {matchLabels: {team: "7"}}, podSelector: {matchLabels: {app: db}}}}
  ingress:
  - {name: one, action: Accept, from: [{namespaces: {matchLabels: {team: "7"}}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {}}, {destinationNamedPort: sql}]}
  - {action: Deny, from: [{namespaces: {}}]}
  egress:
  - {action: Pass, to: [{nodes: {matchLabels: {role: edge}}}, {networks: [203.0.113.0/24, "2001:db8::/32"]}, {nodes: {}}, {networks: []}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: all}
spec: {tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: broken-tier}
spec: {tier: Middle, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: broken-priority}
spec: {tier: Admin, priority: 1001, subject: {namespaces: {}}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: broken-subject}
spec: {tier: Admin, priority: 1, subject: {nodes: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: broken-rules}
spec:
  tier: Admin
  priority: 2
  subject: {namespaces: {}}
  ingress: [{action: Accept, from: []}, {action: Deny, from: [{domainNames: [x.example]}]}, {action: Shrug, from: [{namespaces: {}}]}]
  egress: [{action: Accept, to: [{domainNames: [x.example]}]}, {action: Pass, to: [{networks: [nowhere]}]}]
`

// TestObjectsThatAreWrittenAsManifestsAreReadAsTheSame: each object is to Twill what it was, what cannot be used of it
// included, and nothing is written that Twill does not read.
func TestObjectsThatAreWrittenAsManifestsAreReadAsTheSame(t *testing.T) {
	first := readText(t, everything+somePolicies())
	more := &policy.Pod{Namespace: "default", Name: "port-row", UID: "uid-row", Addresses: first.Get(Key{"Pod", "shop", "db"}).(*policy.Pod).Addresses}
	text, err := ManifestsOf(first, []*policy.Pod{more}, time.Unix(1_800_000_000, 0))
	must(t, err)
	again := readText(t, text)
	objects := 0
	for _, k := range kinds() {
		was, is := first.Keys(k.Kind), again.Keys(k.Kind)
		if k.Kind == "Pod" {
			was = append([]Key{{"Pod", "default", "port-row"}}, was...)
			was[0], was[1] = was[1], was[0] // sorted
		}
		if d := cmp.Diff(was, is); d != "" {
			t.Errorf("%s: %s", k.Kind, d)
		}
		for _, key := range first.Keys(k.Kind) {
			objects++
			if d := cmp.Diff(said(first.Get(key)), said(again.Get(key)), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
				t.Errorf("%s: written (-), read (+):\n%s", key, d)
			}
		}
	}
	if objects < 228 {
		t.Errorf("%d objects were compared", objects)
	}
	if got := again.Get(Key{"Pod", "default", "port-row"}).(*policy.Pod); got.UID != "uid-row" || len(got.Addresses) != 2 {
		t.Errorf("a pod of which only the port is known: %+v", got)
	}
	for _, x := range []string{"hidden", "PASSWORD"} {
		if strings.Contains(text, x) {
			t.Errorf("the manifests have %q, which Twill does not read", x)
		}
	}
	for doc := range strings.SplitSeq(text, "---\n") {
		for _, k := range kinds() {
			if !strings.Contains("\n"+doc, "\nkind: "+k.Kind+"\n") {
				continue
			}
			if err := yaml.UnmarshalStrict([]byte(doc), k.make()); err != nil {
				t.Errorf("not what the API has: %v\n%s", err, doc)
			}
		}
	}
	for _, x := range []string{"nodeName: alpha", "phase: Running", "cidr: 203.0.113.0/24", "- 203.0.113.64/26"} {
		if !strings.Contains(text, x) {
			t.Errorf("no %q in the manifests", x)
		}
	}
}

// said is an object without the words about what is broken in it.
func said(v any) any {
	p, ok := v.(*policy.Policy)
	if !ok {
		return v
	}
	out := *p
	rules := func(list []policy.Rule) (out []policy.Rule) {
		for _, r := range list {
			if r.Broken != "" {
				r.Broken = "yes"
			}
			out = append(out, r)
		}
		return out
	}
	out.Ingress, out.Egress = rules(p.Ingress), rules(p.Egress)
	if p.Broken != "" {
		out.Broken = "yes"
	}
	return &out
}

// somePolicies have exceptions at random, some within others.
func somePolicies() string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := range 200 {
		whole := 8 + r.IntN(16)
		fmt.Fprintf(&b, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: r%d, namespace: shop}\nspec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 203.0.0.0/%d, except: [", i, whole)
		for range r.IntN(6) {
			bits := whole + 1 + r.IntN(32-whole)
			b4 := uint32(203)<<24 | r.Uint32()>>whole
			fmt.Fprintf(&b, "%d.%d.%d.%d/%d, ", b4>>24, b4>>16&255, b4>>8&255, b4&255, bits)
		}
		b.WriteString("]}}]}]}\n")
	}
	return b.String()
}

// readText reads manifests as the offline commands do.
func readText(t *testing.T, text string) *Manifests {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text), 0o600))
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	m, err := ReadDirectory(dir, silent)
	must(t, err)
	return m
}

// TestManifestsThatWereCutAreNotTakenForWhole: a report cuts a file that is too large, and says so in its last line.
func TestManifestsThatWereCutAreNotTakenForWhole(t *testing.T) {
	text, err := ManifestsOf(readText(t, everything), nil, time.Now())
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text[:len(text)/2]+"\n... cut here: 7 of 14 bytes\n"), 0o600))
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	if _, err := ReadDirectory(dir, silent); err == nil || !strings.Contains(err.Error(), "nothing may stand behind the end of a document") {
		t.Errorf("half of the manifests: %v", err)
	}
}
