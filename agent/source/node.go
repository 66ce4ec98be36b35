package source

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// stripNode keeps what convertNode reads. A Node as the API server sends it has some 10 KiB, most of
// it images and managedFields.
func stripNode(o object) object {
	n := o.(*corev1.Node)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, CreationTimestamp: n.CreationTimestamp,
			Labels: n.Labels,
		},
		Spec:   corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs},
		Status: corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: networkConditions(n)},
	}
}

func convertNode(o object) (any, []Problem) {
	node, problems := Convert(o.(*corev1.Node))
	return node, problems
}

// Convert takes from a Node what the pod network needs. Whatever is malformed is left out and has a
// Problem; the rest is used. A Node that has no podCIDR yet is none: its podCIDR comes when the
// controller manager allocates one.
func Convert(n *corev1.Node) (flows.Node, []Problem) {
	node := flows.Node{Name: n.Name, UID: string(n.UID), Created: n.CreationTimestamp.UTC(), Labels: string(policy.LabelsOf(n.Labels))}
	var problems []Problem
	problem := func(format string, args ...any) {
		problems = append(problems, Problem{Key: Key{Kind: "Node", Name: n.Name}, Reason: fmt.Sprintf(format, args...)})
	}

	cidrs, field := n.Spec.PodCIDRs, "spec.podCIDRs[%d]"
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	for i, text := range cidrs {
		where := field
		if len(n.Spec.PodCIDRs) > 0 {
			where = fmt.Sprintf(field, i)
		}
		prefix, fault := parsePodCIDR(text)
		if fault == "" && slices.ContainsFunc(node.PodCIDRs, func(p netip.Prefix) bool {
			return p.Addr().Is4() == prefix.Addr().Is4()
		}) {
			fault = "is the second of its family, and a Node has at most one IPv4 and one IPv6 podCIDR"
		}
		if fault != "" {
			problem("%s %q %s; it is not used. A podCIDR cannot be changed: correct --cluster-cidr of the controller manager, "+
				"delete Node %s and let its kubelet register it anew.", where, text, fault, n.Name)
			continue
		}
		node.PodCIDRs = append(node.PodCIDRs, prefix)
	}

	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		address, fault := parseInternalIP(a.Address)
		if fault != "" {
			problem("status.addresses[%d], InternalIP %q, %s; it is not used. Correct --node-ip of the kubelet of %s.",
				i, a.Address, fault, n.Name)
			continue
		}
		if !slices.Contains(node.Addresses, address) {
			node.Addresses = append(node.Addresses, address)
		}
	}
	if len(node.Addresses) == 0 {
		problem("status.addresses has no usable InternalIP, so no tunnel can reach this Node; "+
			"set --node-ip of the kubelet of %s, or wait until its cloud provider reports one.", n.Name)
	}
	return node, problems
}

// parsePodCIDR says what is wrong with text, or returns the range.
func parsePodCIDR(text string) (_ netip.Prefix, fault string) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, "is not a CIDR such as 10.244.1.0/24 or 2001:db8:1::/64"
	case p.Addr().Is4In6():
		return p, "is an IPv4-mapped IPv6 range, which no packet carries; write the IPv4 range itself"
	case p != p.Masked():
		return p, fmt.Sprintf("has bits set beyond its length; %s would be the range", p.Masked())
	case p.Bits() == 0, p.Addr().IsLoopback(), p.Addr().IsMulticast(), p.Addr().IsLinkLocalUnicast():
		return p, "is no range that pods can have addresses of"
	}
	return p, ""
}

// parseInternalIP says what is wrong with text, or returns the address.
func parseInternalIP(text string) (_ netip.Addr, fault string) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return a, "is not an IP address"
	case a.Is4In6():
		return a, "is an IPv4-mapped IPv6 address, which no packet carries; write " + a.Unmap().String()
	case a.Is6() && a.IsLinkLocalUnicast():
		return a, "is a link-local IPv6 address, which other nodes cannot reach"
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast():
		return a, "is no address that other nodes can reach"
	}
	return a, ""
}
