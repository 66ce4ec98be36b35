package source

import (
	"fmt"
	"net/netip"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/twill-net/twill/agent/policy"
)

// slim stands for an object in the memory of an informer: its name, its version and what was converted. A Pod as
// the API server sends it has some 5 KiB, and there are many.
type slim struct {
	metav1.ObjectMeta
	value    any
	problems []Problem
}

// GetObjectKind and DeepCopyObject make it a runtime.Object. What was converted never changes.
func (s *slim) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (s *slim) DeepCopyObject() runtime.Object {
	out := *s
	return &out
}

// slimmed makes strip and convert of a conversion: what is converted is what is kept.
func slimmed(convert func(object) (any, []Problem)) (strip func(object) object, converted func(object) (any, []Problem)) {
	strip = func(o object) object {
		if s, again := o.(*slim); again {
			return s // client-go may show an informer's object to its transform again
		}
		s := &slim{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), ResourceVersion: o.GetResourceVersion()}}
		s.value, s.problems = convert(o)
		return s
	}
	converted = func(o object) (any, []Problem) {
		if s, ok := o.(*slim); ok {
			return s.value, s.problems
		}
		return convert(o)
	}
	return strip, converted
}

// staticHash is where the mirror object of a static pod tells the UID that its kubelet uses.
const staticHash = "kubernetes.io/config.hash"

// convertPod takes what policies can use of a Pod. A pod with the node's own addresses is node traffic, and
// one that has ended has no address: neither is of interest.
func convertPod(o object) (any, []Problem) {
	p := o.(*corev1.Pod)
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	out := &policy.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Static: p.Annotations[staticHash],
		// Pods of one controller have the same labels, and share them in memory.
		Labels:  policy.Labels(unique.Make(string(policy.LabelsOf(p.Labels))).Value()),
		Created: p.CreationTimestamp.UTC(), Leaving: p.DeletionTimestamp != nil,
	}
	var problems []Problem
	for i, x := range p.Status.PodIPs {
		a, err := netip.ParseAddr(x.IP)
		if err != nil {
			problems = append(problems, Problem{Reason: fmt.Sprintf("status.podIPs[%d].ip %q is not an IP address; it is not used. Delete the pod, so that it is made anew.", i, x.IP)})
			continue
		}
		out.Addresses = append(out.Addresses, a.Unmap())
	}
	if len(p.Status.PodIPs) == 0 && p.Status.PodIP != "" {
		if a, err := netip.ParseAddr(p.Status.PodIP); err == nil {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	containers := append(append([]corev1.Container{}, p.Spec.InitContainers...), p.Spec.Containers...)
	for _, c := range containers {
		for _, port := range c.Ports {
			protocol, ok := protocolNumber(string(port.Protocol))
			if port.Name != "" && ok && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				out.Ports = append(out.Ports, policy.NamedPort{Name: port.Name, Protocol: protocol, Number: uint16(port.ContainerPort)})
			}
		}
	}
	return out, problems
}

// protocolNumber is the IP protocol number of a name of Kubernetes; empty means TCP.
func protocolNumber(name string) (uint8, bool) {
	switch name {
	case "", string(corev1.ProtocolTCP):
		return 6, true
	case string(corev1.ProtocolUDP):
		return 17, true
	case string(corev1.ProtocolSCTP):
		return 132, true
	}
	return 0, false
}

func convertNamespace(o object) (any, []Problem) {
	n := o.(*corev1.Namespace)
	return &policy.Namespace{Name: n.Name, Labels: policy.LabelsOf(n.Labels)}, nil
}
