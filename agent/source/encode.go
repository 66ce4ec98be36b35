package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// ManifestsOf writes every object that a source has as a manifest, and pods that it does not have. They hold what
// Twill reads of an object and nothing else, so no annotation, environment or argument of anybody: read again by
// ReadDirectory they are the same objects. What a source could not use of an object cannot be used of its manifest
// either. at is now, as the time at which a pod that is being deleted is said to be.
func ManifestsOf(s Source, more []*policy.Pod, at time.Time) (string, error) {
	w := writer{nodes: s.Nodes(), at: at}
	all := kinds()
	// A namespace has to be there before what is in it, for whoever applies them.
	slices.SortStableFunc(all, func(a, b kind) int { return rank(a) - rank(b) })
	for _, k := range all {
		for _, key := range s.Keys(k.Kind) {
			if v := s.Get(key); v != nil { // or it has just gone
				w.write(k, v)
			}
		}
		if k.Kind == "Pod" {
			for _, p := range more {
				w.write(k, p)
			}
		}
	}
	return strings.Join(w.docs, "---\n"), w.err
}

func rank(k kind) int {
	if k.Kind == "Namespace" {
		return 0
	}
	return 1
}

// writer collects manifests.
type writer struct {
	nodes []flows.Node
	at    time.Time
	docs  []string
	err   error
}

func (w *writer) write(k kind, value any) {
	head := metav1.TypeMeta{}
	head.APIVersion, head.Kind = k.ToAPIVersionAndKind()
	var o any
	switch v := value.(type) {
	case flows.Node:
		o = nodeManifest(head, v)
	case *policy.Namespace:
		o = corev1.Namespace{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{Name: v.Name, Labels: labelMap(v.Labels)}}
	case *policy.Pod:
		o = w.pod(head, v)
	case *ServiceObject:
		o = serviceManifest(head, v)
	case *SliceObject:
		o = sliceManifest(head, v)
	case *policy.Policy:
		if v.Namespace == "" {
			o = clusterPolicyManifest(head, v)
		} else {
			o = networkPolicyManifest(head, v)
		}
	default:
		w.err = fmt.Errorf("%s cannot be written as manifests", k.Kind)
		return
	}
	text, err := yaml.Marshal(o)
	if err != nil {
		w.err = fmt.Errorf("%s as a manifest: %w", k.Kind, err)
		return
	}
	w.docs = append(w.docs, string(text))
}

func labelMap(l policy.Labels) map[string]string {
	if l == "" {
		return nil
	}
	out := map[string]string{}
	for part := range strings.SplitSeq(string(l), ",") {
		k, v, _ := strings.Cut(part, "=")
		out[k] = v
	}
	return out
}

// nodeManifest is no corev1.Node: that would be written with a dozen empty fields that nothing is known of.
func nodeManifest(head metav1.TypeMeta, n flows.Node) any {
	meta := metav1.ObjectMeta{Name: n.Name, UID: types.UID(n.UID), CreationTimestamp: metav1.NewTime(n.Created), Labels: labelMap(policy.Labels(n.Labels))}
	addresses := []corev1.NodeAddress{}
	for _, a := range n.Addresses {
		addresses = append(addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	spec := map[string]any{}
	if len(n.PodCIDRs) > 0 {
		spec["podCIDR"], spec["podCIDRs"] = n.PodCIDRs[0], n.PodCIDRs
	}
	return map[string]any{
		"apiVersion": head.APIVersion, "kind": head.Kind, "metadata": meta, "spec": spec, "status": map[string]any{"addresses": addresses},
	}
}

func (w *writer) pod(head metav1.TypeMeta, p *policy.Pod) corev1.Pod {
	out := corev1.Pod{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), CreationTimestamp: metav1.NewTime(p.Created), Labels: labelMap(p.Labels),
	}}
	if p.Static != "" {
		out.Annotations = map[string]string{staticHash: p.Static}
	}
	if p.Leaving {
		now := metav1.NewTime(w.at.UTC().Truncate(time.Second))
		out.DeletionTimestamp = &now
	}
	// A pod has a container with an image; which, Twill does not read.
	c := corev1.Container{Name: "unknown", Image: "unknown"}
	for _, x := range p.Ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: x.Name, Protocol: protocolName(x.Protocol), ContainerPort: int32(x.Number)})
	}
	out.Spec = corev1.PodSpec{NodeName: w.nodeOf(p.Addresses), Containers: []corev1.Container{c}}
	out.Status.Phase = corev1.PodPending
	for _, a := range p.Addresses {
		out.Status.Phase = corev1.PodRunning
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return out
}

// nodeOf is the node whose podCIDR has one of the addresses; empty if none has.
func (w *writer) nodeOf(addresses []netip.Addr) string {
	for _, a := range addresses {
		for _, n := range w.nodes {
			if slices.ContainsFunc(n.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
				return n.Name
			}
		}
	}
	return ""
}

// protocolName is what protocolNumber reads; what is none of Kubernetes' protocols has a name that is none either.
func protocolName(number uint8) corev1.Protocol {
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		if n, _ := protocolNumber(string(p)); n == number {
			return p
		}
	}
	return "unknown"
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, x := range list {
		out = append(out, x.String())
	}
	return out
}

func serviceManifest(head metav1.TypeMeta, s *ServiceObject) corev1.Service {
	out := corev1.Service{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: types.UID(s.UID)}}
	if len(s.ClusterIPs) == 0 && len(s.Ports) == 0 {
		out.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone} // headless, or another proxy's
		return out
	}
	internal := corev1.ServiceInternalTrafficPolicyCluster
	if s.InternalLocal {
		internal = corev1.ServiceInternalTrafficPolicyLocal
	}
	out.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: texts(s.ClusterIPs), ExternalIPs: texts(s.External), InternalTrafficPolicy: &internal}
	if len(s.ClusterIPs) > 0 {
		out.Spec.ClusterIP = out.Spec.ClusterIPs[0]
	}
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			out.Spec.Type = corev1.ServiceTypeNodePort
		}
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{
			Name: p.Name, Protocol: corev1.Protocol(strings.ToUpper(p.Protocol)), Port: int32(p.Port), NodePort: int32(p.NodePort),
		})
	}
	if len(s.LoadBalancer)+len(s.SourceRanges) > 0 || s.HealthCheckNodePort != 0 {
		out.Spec.Type = corev1.ServiceTypeLoadBalancer
		out.Spec.LoadBalancerSourceRanges, out.Spec.HealthCheckNodePort = texts(s.SourceRanges), int32(s.HealthCheckNodePort)
		for _, a := range s.LoadBalancer {
			out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
		}
	}
	if s.ExternalLocal {
		out.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if s.Affinity > 0 {
		seconds := int32(s.Affinity)
		out.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		out.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	return out
}

func sliceManifest(head metav1.TypeMeta, s *SliceObject) discoveryv1.EndpointSlice {
	out := discoveryv1.EndpointSlice{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name}, AddressType: discoveryv1.AddressTypeIPv4}
	if s.Service != "" {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: s.Service}
	}
	for _, p := range s.Ports {
		protocol, number := corev1.Protocol(strings.ToUpper(p.Protocol)), int32(p.Port)
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &protocol, Port: &number})
	}
	out.Endpoints = []discoveryv1.Endpoint{} // a required field
	for _, e := range s.Endpoints {
		if e.Address.Is6() {
			out.AddressType = discoveryv1.AddressTypeIPv6 // that of all
		}
		x := discoveryv1.Endpoint{Addresses: []string{e.Address.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating}}
		if e.Node != "" {
			x.NodeName = &e.Node
		}
		if len(e.ForZones)+len(e.ForNodes) > 0 {
			x.Hints = &discoveryv1.EndpointHints{}
			for _, z := range e.ForZones {
				x.Hints.ForZones = append(x.Hints.ForZones, discoveryv1.ForZone{Name: z})
			}
			for _, n := range e.ForNodes {
				x.Hints.ForNodes = append(x.Hints.ForNodes, discoveryv1.ForNode{Name: n})
			}
		}
		out.Endpoints = append(out.Endpoints, x)
	}
	return out
}
