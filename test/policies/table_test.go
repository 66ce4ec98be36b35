package policies

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/test/evaluator"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestTheTruthTableOfPoliciesWithRealPackets has three namespaces with three pods each on two nodes, and asks for
// every pair, both families, TCP and UDP, ports 80 and 81, under one set of policies after the other.
func TestTheTruthTableOfPoliciesWithRealPackets(t *testing.T) {
	l := up(t, 2)
	var pods []lab.Pod
	for i, ns := range []string{"nx", "ny", "nz"} {
		labtest.Apply(t, l, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {ns: %s}}}", ns, ns))
		for j, name := range []string{"a", "b", "c"} {
			pods = append(pods, lab.Pod{Namespace: ns, Name: name, Node: fmt.Sprintf("node-%d", 1+(i+j)%2), Labels: map[string]string{"pod": name}})
		}
	}
	pods, err := l.AddPods(t.Context(), pods)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		serve(t, p, 80, 81)
	}
	var probes []probe
	for _, from := range pods {
		for _, to := range pods {
			for _, a := range to.Addresses {
				for _, protocol := range []string{"TCP", "UDP"} {
					for _, port := range []int{80, 81} {
						if from.String() != to.String() {
							probes = append(probes, probe{from, to, a, protocol, port})
						}
					}
				}
			}
		}
	}
	for _, c := range []struct{ name, manifests string }{
		{"ingress of one pod from another namespace, by port", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: nx, name: only-y}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: ny}}}]
    ports: [{port: 80}]
`},
		{"nothing in, nothing out, and what two more policies allow together", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: nx, name: nothing}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: nx, name: out}
spec:
  podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}
  policyTypes: [Egress]
  egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: nx, name: in}
spec:
  podSelector: {matchLabels: {pod: b}}
  ingress: [{ports: [{protocol: UDP, port: 81}]}]
`},
		{"Admin accepts, passes and denies around a NetworkPolicy; Baseline where there is none", `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: first}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {ns: nx}}}
  ingress:
  - {action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {ns: ny}}, podSelector: {matchLabels: {pod: a}}}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}
  - {action: Pass, from: [{namespaces: {matchLabels: {ns: ny}}}]}
  - {action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 80}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: second}
spec:
  tier: Admin
  priority: 2
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {ns: ny}}, podSelector: {matchLabels: {pod: b}}}}]}
  egress:
  - {action: Deny, to: [{pods: {namespaceSelector: {matchLabels: {ns: nz}}, podSelector: {matchLabels: {pod: c}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: nx, name: web}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress: [{ports: [{port: 80}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: last}
spec:
  tier: Baseline
  priority: 0
  subject: {namespaces: {}}
  ingress:
  - {action: Accept, from: [{namespaces: {matchLabels: {ns: ny}}}]}
  - {action: Pass, from: [{namespaces: {matchLabels: {ns: nz}}}], protocols: [{tcp: {}}]}
  - {action: Deny, from: [{namespaces: {}}]}
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			remove := labtest.Apply(t, l, c.manifests)
			defer remove()
			ev := cluster(t, l)
			allowed := 0
			want := func(p probe) bool { return verdict(ev, p) }
			for _, p := range probes {
				if want(p) {
					allowed++
				}
			}
			if allowed == 0 || allowed == len(probes) {
				t.Fatalf("the case shows nothing: %d of %d probes are allowed", allowed, len(probes))
			}
			wrong := compare(probes, want)
			for _, p := range wrong {
				t.Errorf("%s: allowed must be %v", p, want(p))
			}
			t.Logf("%d verdicts, %d allowed, %d wrong", len(probes), allowed, len(wrong))
		})
	}
}

// verdict asks the evaluator about both ends.
func verdict(c evaluator.Cluster, p probe) bool {
	packet := evaluator.Packet{Destination: p.address, Protocol: corev1.Protocol(p.protocol), Port: int32(p.port)}
	for _, a := range p.from.Addresses {
		if a.Is4() == p.address.Is4() {
			packet.Source = a
		}
	}
	out, _ := c.Egress(packet)
	in, _ := c.Ingress(packet)
	return out && in
}
