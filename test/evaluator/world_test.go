package evaluator_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/test/evaluator"
)

const (
	here, there = "alpha", "beta"
	podsHere    = "198.18.1.0/24,2001:db8:1:1::/64"
	podsThere   = "198.18.2.0/24,2001:db8:1:2::/64"
)

// dice make random clusters. All come from a small vocabulary, so that selectors often match.
type dice struct{ *rand.Rand }

func roll(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 4))} }

func (d dice) one(n int) bool { return d.IntN(n) == 0 }

func pick[T any](d dice, list ...T) T { return list[d.IntN(len(list))] }

// cluster is a random cluster of three namespaces, two nodes and up to nine pods, with policies.
func (d dice) cluster() evaluator.Cluster {
	var c evaluator.Cluster
	for i, name := range []string{here, there} {
		n := corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
		n.Name, n.UID = name, types.UID("uid-"+name)
		n.Labels = map[string]string{"zone": pick(d, "a", "b")}
		n.Spec.PodCIDRs = split([]string{podsHere, podsThere}[i])
		for _, a := range []string{fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("2001:db8:ffff::%d", i+1)} {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		c.Nodes = append(c.Nodes, n)
	}
	for _, name := range []string{"x", "y", "z"} {
		n := corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
		n.Name = name
		n.Labels = map[string]string{"kubernetes.io/metadata.name": name}
		if !d.one(4) {
			n.Labels["team"] = pick(d, "red", "blue")
		}
		c.Namespaces = append(c.Namespaces, n)
	}
	number := byte(10)
	for _, ns := range []string{"x", "y", "z"} {
		for _, name := range []string{"a", "b", "c"} {
			if number++; !d.one(8) {
				c.Pods = append(c.Pods, d.pod(ns, name, number))
			}
		}
	}
	if d.one(2) {
		// It has ended, and somebody else has its address.
		p := c.Pods[0]
		p.Name, p.Status.Phase, p.Labels = "done", corev1.PodSucceeded, map[string]string{"app": "web"}
		c.Pods = append(c.Pods, p)
	}
	for i := range d.IntN(7) {
		c.NetworkPolicies = append(c.NetworkPolicies, d.networkPolicy(i))
	}
	for i := range max(0, d.IntN(8)-3) {
		c.ClusterNetworkPolicies = append(c.ClusterNetworkPolicies, d.clusterPolicy(i))
	}
	return c
}

func (d dice) pod(ns, name string, number byte) corev1.Pod {
	p := corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	p.Namespace, p.Name, p.UID = ns, name, types.UID("uid-"+ns+name)
	p.Labels = map[string]string{"pod": name}
	if !d.one(3) {
		p.Labels["app"] = pick(d, "web", "db")
	}
	if d.one(3) {
		p.Labels["tier"] = pick(d, "front", "back")
	}
	p.Spec.NodeName = pick(d, here, here, there)
	c := corev1.Container{Name: "main"}
	for _, port := range []corev1.ContainerPort{
		{Name: "http", ContainerPort: pick[int32](d, 80, 8080)},
		{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		{Name: "dns", ContainerPort: pick[int32](d, 53, 5353), Protocol: corev1.ProtocolTCP},
		{Name: "sig", ContainerPort: pick[int32](d, 80, 8080), Protocol: corev1.ProtocolSCTP},
	} {
		if !d.one(3) {
			c.Ports = append(c.Ports, port)
		}
	}
	p.Spec.Containers = []corev1.Container{c}
	p.Status.Phase = corev1.PodRunning
	v4, v6 := netip.MustParseAddr("198.18.1.0"), netip.MustParseAddr("2001:db8:1:1::")
	if p.Spec.NodeName == there {
		v4, v6 = netip.MustParseAddr("198.18.2.0"), netip.MustParseAddr("2001:db8:1:2::")
	}
	for range number {
		v4, v6 = v4.Next(), v6.Next()
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: v4.String()}, {IP: v6.String()}}
	return p
}

// selector selects by labels of pods, or of namespaces.
func (d dice) selector(namespaces bool) metav1.LabelSelector {
	keys, values := []string{"app", "tier", "pod"}, map[string][]string{"app": {"web", "db"}, "tier": {"front", "back"}, "pod": {"a", "b", "c"}}
	if namespaces {
		keys, values = []string{"team", "kubernetes.io/metadata.name"}, map[string][]string{"team": {"red", "blue"}, "kubernetes.io/metadata.name": {"x", "y", "z"}}
	}
	var s metav1.LabelSelector
	key := pick(d, keys...)
	switch d.IntN(7) {
	case 0, 1:
	case 2, 3:
		s.MatchLabels = map[string]string{key: pick(d, values[key]...)}
	case 4:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: key, Operator: pick(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: values[key][:1+d.IntN(len(values[key]))]}}
	case 5:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: key, Operator: pick(d, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}
	case 6:
		s.MatchLabels = map[string]string{key: pick(d, values[key]...)}
		other := pick(d, keys...)
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: other, Operator: metav1.LabelSelectorOpNotIn, Values: values[other][:1]}}
	}
	return s
}

func some[T any](d dice, most int, f func() T) []T {
	var out []T
	for range d.IntN(most + 1) {
		out = append(out, f())
	}
	return out
}

func (d dice) networkPolicy(i int) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}}
	p.Namespace, p.Name = pick(d, "x", "y", "z"), fmt.Sprintf("np-%d", i)
	p.Spec.PodSelector = d.selector(false)
	p.Spec.PolicyTypes = pick(d, nil,
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress})
	p.Spec.Ingress = some(d, 3, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: some(d, 2, d.networkPeer), Ports: some(d, 2, d.networkPort)}
	})
	p.Spec.Egress = some(d, 3, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: some(d, 2, d.networkPeer), Ports: some(d, 2, d.networkPort)}
	})
	return p
}

func (d dice) networkPeer() networkingv1.NetworkPolicyPeer {
	pods, namespaces := d.selector(false), d.selector(true)
	switch d.IntN(5) {
	case 0:
		return networkingv1.NetworkPolicyPeer{PodSelector: &pods}
	case 1:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: &namespaces}
	case 2:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: &namespaces, PodSelector: &pods}
	}
	return networkingv1.NetworkPolicyPeer{IPBlock: pick(d,
		&networkingv1.IPBlock{CIDR: "0.0.0.0/0"},
		&networkingv1.IPBlock{CIDR: "::/0", Except: []string{"2001:db8:1:1::/64"}},
		&networkingv1.IPBlock{CIDR: "198.18.0.0/15", Except: []string{"198.18.1.8/29", "198.18.2.16/30"}},
		&networkingv1.IPBlock{CIDR: "198.18.1.0/28"},
		&networkingv1.IPBlock{CIDR: "203.0.113.0/24", Except: []string{"203.0.113.128/25"}},
		&networkingv1.IPBlock{CIDR: "2001:db8:2::/48"},
		&networkingv1.IPBlock{CIDR: "198.51.100.2/32"},
	)}
}

func (d dice) networkPort() networkingv1.NetworkPolicyPort {
	protocol := pick(d, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
	if d.one(4) {
		p.Protocol = nil
	}
	number := func(n int32) *intstr.IntOrString { v := intstr.FromInt32(n); return &v }
	switch d.IntN(6) {
	case 0:
	case 1:
		name := intstr.FromString(pick(d, "http", "dns", "sig", "none"))
		p.Port = &name
	case 2:
		end := pick[int32](d, 80, 443, 8080, 65535)
		p.Port, p.EndPort = number(pick[int32](d, 1, 53, 79, 80)), &end
	default:
		p.Port = number(pick[int32](d, 53, 80, 81, 8080, 5353))
	}
	return p
}

func (d dice) clusterPolicy(i int) evaluator.ClusterNetworkPolicy {
	p := evaluator.ClusterNetworkPolicy{TypeMeta: metav1.TypeMeta{APIVersion: "policy.networking.k8s.io/v1alpha2", Kind: "ClusterNetworkPolicy"}}
	p.Name = fmt.Sprintf("cnp-%d", i)
	p.Spec.Tier = pick(d, "Admin", "Baseline")
	p.Spec.Priority = pick[int32](d, 0, 1, 1, 500, 1000)
	p.Spec.Subject = d.clusterPeer(0)
	p.Spec.Ingress = some(d, 4, func() evaluator.ClusterRule { r := d.clusterRule(); r.From = d.clusterPeers(0); return r })
	p.Spec.Egress = some(d, 4, func() evaluator.ClusterRule { r := d.clusterRule(); r.To = d.clusterPeers(1); return r })
	return p
}

func (d dice) clusterRule() evaluator.ClusterRule {
	return evaluator.ClusterRule{Action: pick(d, "Accept", "Deny", "Pass"), Protocols: some(d, 2, func() evaluator.ClusterProtocol {
		port := &evaluator.ClusterPort{}
		switch d.IntN(4) {
		case 0:
			return evaluator.ClusterProtocol{DestinationNamedPort: pick(d, "http", "dns", "sig")}
		case 1:
			port.DestinationPort = &evaluator.PortChoice{Number: pick[int32](d, 53, 80, 81, 8080)}
		case 2:
			port.DestinationPort = &evaluator.PortChoice{Range: &evaluator.PortRange{Start: pick[int32](d, 1, 80), End: pick[int32](d, 81, 8080, 65535)}}
		}
		return pick(d, evaluator.ClusterProtocol{TCP: port}, evaluator.ClusterProtocol{UDP: port}, evaluator.ClusterProtocol{SCTP: port})
	})}
}

func (d dice) clusterPeers(egress int) []evaluator.ClusterPeer {
	out := []evaluator.ClusterPeer{d.clusterPeer(egress)}
	if d.one(3) {
		out = append(out, d.clusterPeer(egress))
	}
	return out
}

// clusterPeer is a choice of pods or, for a peer of egress, perhaps of nodes or networks.
func (d dice) clusterPeer(egress int) evaluator.ClusterPeer {
	switch namespaces := d.selector(true); d.IntN(2 + 2*egress) {
	case 0:
		return evaluator.ClusterPeer{Namespaces: &namespaces}
	case 1:
		return evaluator.ClusterPeer{Pods: &evaluator.NamespacedPod{NamespaceSelector: namespaces, PodSelector: d.selector(false)}}
	case 2:
		nodes := pick(d, metav1.LabelSelector{}, metav1.LabelSelector{MatchLabels: map[string]string{"zone": "a"}})
		return evaluator.ClusterPeer{Nodes: &nodes}
	}
	return evaluator.ClusterPeer{Networks: pick(d, []string{"0.0.0.0/0"}, []string{"203.0.113.0/24", "2001:db8:2::/48"}, []string{"::/0"}, []string{"198.18.1.0/28"})}
}

// write puts the objects of a cluster into a directory of manifests.
func write(t testing.TB, dir string, c evaluator.Cluster) {
	t.Helper()
	var objects []any
	for _, x := range c.Nodes {
		objects = append(objects, x)
	}
	for _, x := range c.Namespaces {
		objects = append(objects, x)
	}
	for _, x := range c.Pods {
		objects = append(objects, x)
	}
	for _, x := range c.NetworkPolicies {
		objects = append(objects, x)
	}
	for _, x := range c.ClusterNetworkPolicies {
		objects = append(objects, x)
	}
	data, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": objects})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func split(s string) []string { return strings.Split(s, ",") }
