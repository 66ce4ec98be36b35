package source

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/twill-net/twill/agent/policy"
)

// unusable stands for a selector of which nothing is kept but that it could not be used.
const unusable = "unusable"

// networkPolicyManifest writes what convertNetworkPolicy has read.
func networkPolicyManifest(head metav1.TypeMeta, p *policy.Policy) networkingv1.NetworkPolicy {
	out := networkingv1.NetworkPolicy{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}}
	out.Spec.PodSelector = labelSelector(p.Subject.Pods)
	if p.Broken != "" {
		out.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: unusable, Operator: unusable}}}
	}
	// Written out, since their absence means something else.
	if p.IsolatesIngress {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	}
	if p.IsolatesEgress {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
	for _, r := range p.Ingress {
		peers, ports := networkRule(p.Namespace, r)
		out.Spec.Ingress = append(out.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
	}
	for _, r := range p.Egress {
		peers, ports := networkRule(p.Namespace, r)
		out.Spec.Egress = append(out.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
	}
	return out
}

func networkRule(namespace string, r policy.Rule) (peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	for _, x := range r.Peers {
		var peer networkingv1.NetworkPolicyPeer // stays empty for one that could not be used, and so cannot be again
		switch {
		case x.Pods != nil:
			selected := labelSelector(x.Pods.Pods)
			peer.PodSelector = &selected
			if x.Pods.Namespace != namespace {
				namespaces := labelSelector(x.Pods.Namespaces)
				peer.NamespaceSelector = &namespaces
			}
		case x.Ranges != nil:
			peer.IPBlock = ipBlock(x.Ranges)
		}
		peers = append(peers, peer)
	}
	for _, x := range r.Ports {
		protocol := protocolName(x.Protocol)
		port := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch {
		case x.Name != "":
			name := intstr.FromString(x.Name)
			port.Port = &name
		case x.First != 0:
			first := intstr.FromInt32(int32(x.First))
			port.Port = &first
			if last := int32(x.Last); x.Last != x.First {
				port.EndPort = &last
			}
		case r.Broken != "":
			// Either every port of the protocol, or one that could not be used: the rule allows nothing with both.
			none := intstr.FromInt32(0)
			port.Port = &none
		}
		ports = append(ports, port)
	}
	return peers, ports
}

// ipBlock is the range and the exceptions of which these ranges are left: those of policy.Subtract, so as few as can
// be. Without one, all of a range is excepted.
func ipBlock(ranges []netip.Prefix) *networkingv1.IPBlock {
	if len(ranges) == 0 {
		nothing := "0.0.0.0/0"
		return &networkingv1.IPBlock{CIDR: nothing, Except: []string{nothing}}
	}
	whole := ranges[0]
	for last := ranges[len(ranges)-1]; !whole.Contains(last.Addr()) || whole.Bits() > last.Bits(); {
		whole = netip.PrefixFrom(whole.Addr(), whole.Bits()-1).Masked()
	}
	return &networkingv1.IPBlock{CIDR: whole.String(), Except: texts(policy.Subtract(whole, ranges))}
}

// labelSelector writes what selector has read.
func labelSelector(s policy.Selector) (out metav1.LabelSelector) {
	for _, r := range s {
		if _, taken := out.MatchLabels[r.Key]; r.Op == policy.In && len(r.Values) == 1 && !taken {
			if out.MatchLabels == nil {
				out.MatchLabels = map[string]string{}
			}
			out.MatchLabels[r.Key] = r.Values[0]
			continue
		}
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{Key: r.Key, Operator: metav1.LabelSelectorOperator(r.Op), Values: r.Values})
	}
	return out
}

// clusterPolicyManifest writes what convertClusterNetworkPolicy has read.
func clusterPolicyManifest(head metav1.TypeMeta, p *policy.Policy) *ClusterNetworkPolicy {
	out := &ClusterNetworkPolicy{TypeMeta: head, ObjectMeta: metav1.ObjectMeta{Name: p.Name, UID: types.UID(p.UID)}}
	out.Spec.Tier, out.Spec.Priority = string(p.Tier), int32(p.Priority)
	if !strings.HasPrefix(p.Broken, brokenSubject) {
		out.Spec.Subject = clusterPodsPeer(&p.Subject)
	} // an empty one cannot be used either
	rules := func(list []policy.Rule, egress bool) (out []clusterRule) {
		for _, r := range list {
			out = append(out, clusterRuleManifest(r, egress))
		}
		return out
	}
	out.Spec.Ingress, out.Spec.Egress = rules(p.Ingress, false), rules(p.Egress, true)
	return out
}

func clusterRuleManifest(r policy.Rule, egress bool) clusterRule {
	out := clusterRule{Action: string(r.Verdict)}
	if r.Broken != "" || r.AnyPeer {
		return out // without a peer it cannot be used either, and matches nothing or denies everything, as before
	}
	var peers []clusterPeer
	for _, x := range r.Peers {
		switch {
		case x.Pods != nil:
			peers = append(peers, clusterPodsPeer(x.Pods))
		case x.Nodes != nil:
			nodes := labelSelector(*x.Nodes)
			peers = append(peers, clusterPeer{Nodes: &nodes})
		default:
			peers = append(peers, clusterPeer{Networks: append([]string{}, texts(x.Ranges)...)})
		}
	}
	out.From = peers
	if egress {
		out.From, out.To = nil, peers
	}
	for _, x := range r.Ports {
		if x.Name != "" {
			out.Protocols = append(out.Protocols, clusterProtocol{NamedPort: x.Name})
			continue
		}
		port := &clusterPort{}
		if x.First != 0 {
			port.DestinationPort = &clusterPortNumber{Number: int32(x.First)}
			if x.Last != x.First {
				port.DestinationPort = &clusterPortNumber{Range: &clusterPortRange{Start: int32(x.First), End: int32(x.Last)}}
			}
		}
		out.Protocols = append(out.Protocols, map[uint8]clusterProtocol{6: {TCP: port}, 17: {UDP: port}, 132: {SCTP: port}}[x.Protocol])
	}
	return out
}

func clusterPodsPeer(p *policy.Pods) clusterPeer {
	namespaces := labelSelector(p.Namespaces)
	if len(p.Pods) == 0 {
		return clusterPeer{Namespaces: &namespaces}
	}
	return clusterPeer{Pods: &clusterPodSelector{NamespaceSelector: namespaces, PodSelector: labelSelector(p.Pods)}}
}
