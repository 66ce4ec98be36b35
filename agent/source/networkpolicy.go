package source

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// convertNetworkPolicy takes what a NetworkPolicy says. What cannot be used of it never opens anything: a
// rule that is wrong allows nothing, and a podSelector that is wrong selects every pod of the namespace.
func convertNetworkPolicy(o object) (any, []Problem) {
	n := o.(*networkingv1.NetworkPolicy)
	out := &policy.Policy{Namespace: n.Namespace, Name: n.Name, UID: string(n.UID), Tier: flows.NetworkTier}
	out.Subject.Namespace = n.Namespace
	// Without policyTypes: ingress always, egress if there are rules for it (API documentation of policyTypes).
	out.IsolatesIngress = len(n.Spec.PolicyTypes) == 0 || slices.Contains(n.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	out.IsolatesEgress = len(n.Spec.PolicyTypes) == 0 && len(n.Spec.Egress) > 0 || slices.Contains(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	var problems []Problem
	problem := func(format string, args ...any) {
		problems = append(problems, Problem{Reason: fmt.Sprintf(format, args...)})
	}
	for i, t := range n.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			problem("spec.policyTypes[%d] %q is neither Ingress nor Egress; the pods it selects are isolated in both directions.", i, t)
			out.IsolatesIngress, out.IsolatesEgress = true, true
		}
	}
	var err error
	if out.Subject.Pods, err = selector(&n.Spec.PodSelector); err != nil {
		out.Broken = fmt.Sprintf("spec.podSelector: %v", err)
		problem("spec.podSelector: %v; until it is corrected every pod of namespace %s is isolated.", err, n.Namespace)
		return out, problems
	}
	rule := func(field string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) policy.Rule {
		r := policy.Rule{Verdict: flows.Accept, AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
		for i, x := range peers {
			peer, err := networkPeer(n.Namespace, x)
			if err != nil {
				r.Broken = fmt.Sprintf("%s[%d]: %v", field, i, err)
			}
			r.Peers = append(r.Peers, peer)
		}
		for i, x := range ports {
			port, err := networkPort(x)
			if err != nil {
				r.Broken = fmt.Sprintf("ports[%d]: %v", i, err)
			}
			r.Ports = append(r.Ports, port)
		}
		return r
	}
	if out.IsolatesIngress {
		for i, x := range n.Spec.Ingress {
			r := rule("from", x.From, x.Ports)
			if r.Broken != "" {
				problem("spec.ingress[%d].%s; the rule allows nothing until it is corrected.", i, r.Broken)
			}
			out.Ingress = append(out.Ingress, r)
		}
	}
	if out.IsolatesEgress {
		for i, x := range n.Spec.Egress {
			r := rule("to", x.To, x.Ports)
			if r.Broken != "" {
				problem("spec.egress[%d].%s; the rule allows nothing until it is corrected.", i, r.Broken)
			}
			out.Egress = append(out.Egress, r)
		}
	}
	return out, problems
}

func networkPeer(namespace string, x networkingv1.NetworkPolicyPeer) (policy.Peer, error) {
	if x.IPBlock != nil {
		if x.PodSelector != nil || x.NamespaceSelector != nil {
			return policy.Peer{}, fmt.Errorf("ipBlock stands beside a selector; divide it into two peers")
		}
		ranges, err := block(x.IPBlock.CIDR, x.IPBlock.Except)
		return policy.Peer{Ranges: ranges}, err
	}
	if x.PodSelector == nil && x.NamespaceSelector == nil {
		return policy.Peer{}, fmt.Errorf("the peer is empty; it needs podSelector, namespaceSelector or ipBlock")
	}
	pods := &policy.Pods{}
	var err error
	if x.PodSelector != nil {
		if pods.Pods, err = selector(x.PodSelector); err != nil {
			return policy.Peer{}, fmt.Errorf("podSelector: %w", err)
		}
	}
	if x.NamespaceSelector == nil {
		pods.Namespace = namespace
	} else if pods.Namespaces, err = selector(x.NamespaceSelector); err != nil {
		return policy.Peer{}, fmt.Errorf("namespaceSelector: %w", err)
	}
	return policy.Peer{Pods: pods}, nil
}

func networkPort(x networkingv1.NetworkPolicyPort) (policy.Ports, error) {
	name := ""
	if x.Protocol != nil {
		name = string(*x.Protocol)
	}
	protocol, ok := protocolNumber(name)
	if !ok {
		return policy.Ports{}, fmt.Errorf("protocol %q is none of TCP, UDP, SCTP", name)
	}
	out := policy.Ports{Protocol: protocol}
	if x.Port == nil {
		if x.EndPort != nil {
			return out, fmt.Errorf("endPort needs a port")
		}
		return out, nil
	}
	if x.Port.Type == intstr.String {
		if x.EndPort != nil {
			return out, fmt.Errorf("endPort needs a port that is a number, not the name %q", x.Port.StrVal)
		}
		if x.Port.StrVal == "" {
			return out, fmt.Errorf("port is an empty name")
		}
		out.Name = x.Port.StrVal
		return out, nil
	}
	last := x.Port.IntVal
	if x.EndPort != nil {
		last = *x.EndPort
	}
	return portRange(out, x.Port.IntVal, last)
}

func portRange(out policy.Ports, first, last int32) (policy.Ports, error) {
	switch {
	case first < 1 || first > 65535:
		return out, fmt.Errorf("port %d is not within 1–65535", first)
	case last < 1 || last > 65535:
		return out, fmt.Errorf("endPort %d is not within 1–65535", last)
	case last < first:
		return out, fmt.Errorf("endPort %d is below port %d", last, first)
	}
	out.First, out.Last = uint16(first), uint16(last)
	return out, nil
}

// selector converts a label selector; nil for one that matches everything.
func selector(s *metav1.LabelSelector) (policy.Selector, error) {
	var out policy.Selector
	for k, v := range s.MatchLabels {
		out = append(out, policy.Requirement{Key: k, Op: policy.In, Values: []string{v}})
	}
	for _, e := range s.MatchExpressions {
		r := policy.Requirement{Key: e.Key, Op: policy.Operator(e.Operator)}
		switch e.Operator {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			if len(e.Values) == 0 {
				return nil, fmt.Errorf("operator %s of key %q needs values", e.Operator, e.Key)
			}
			r.Values = slices.Sorted(slices.Values(e.Values))
		case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
			if len(e.Values) > 0 {
				return nil, fmt.Errorf("operator %s of key %q takes no values", e.Operator, e.Key)
			}
		default:
			return nil, fmt.Errorf("operator %q of key %q is unknown", e.Operator, e.Key)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, policy.CompareRequirements)
	return out, nil
}

// block is a CIDR without its exceptions, as the ranges that are left.
func block(cidr string, except []string) ([]netip.Prefix, error) {
	whole, err := cidrOf(cidr)
	if err != nil {
		return nil, fmt.Errorf("ipBlock.cidr %w", err)
	}
	var holes []netip.Prefix
	for i, text := range except {
		hole, err := cidrOf(text)
		if err != nil {
			return nil, fmt.Errorf("ipBlock.except[%d] %w", i, err)
		}
		if !whole.Contains(hole.Addr()) || hole.Bits() < whole.Bits() {
			return nil, fmt.Errorf("ipBlock.except[%d] %s is not within %s", i, text, cidr)
		}
		holes = append(holes, hole)
	}
	return policy.Subtract(whole, holes), nil
}

func cidrOf(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is not a CIDR such as 203.0.113.0/24 or 2001:db8::/32", text)
	}
	return p.Masked(), nil
}
