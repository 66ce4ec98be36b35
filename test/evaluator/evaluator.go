// Package evaluator says what NetworkPolicies and ClusterNetworkPolicies do to a packet, as the documentation of their
// API says it, one object after the other, without any thought of speed. It shares no code with the agent: tests
// compare the two.
//
//	c := evaluator.Cluster{Pods: …, NetworkPolicies: …}
//	ok, why := c.Ingress(evaluator.Packet{Source: …, Destination: …, Protocol: "TCP", Port: 80})
package evaluator

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cluster is everything that policies look at.
type Cluster struct {
	Namespaces             []corev1.Namespace
	Pods                   []corev1.Pod
	Nodes                  []corev1.Node
	NetworkPolicies        []networkingv1.NetworkPolicy
	ClusterNetworkPolicies []ClusterNetworkPolicy
}

// Packet is the first packet of a connection.
type Packet struct {
	Source, Destination netip.Addr
	// Protocol is TCP, UDP, SCTP or anything else, such as ICMP.
	Protocol corev1.Protocol
	// Port is the destination port of those that have one.
	Port int32
}

// ClusterNetworkPolicy is that of policy.networking.k8s.io/v1alpha2.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ClusterSpec `json:"spec"`
}

// ClusterSpec and the types below are parts of it.
type ClusterSpec struct {
	Tier     string        `json:"tier"`
	Priority int32         `json:"priority"`
	Subject  ClusterPeer   `json:"subject"`
	Ingress  []ClusterRule `json:"ingress,omitempty"`
	Egress   []ClusterRule `json:"egress,omitempty"`
}

type ClusterRule struct {
	Name      string            `json:"name,omitempty"`
	Action    string            `json:"action"`
	From      []ClusterPeer     `json:"from,omitempty"`
	To        []ClusterPeer     `json:"to,omitempty"`
	Protocols []ClusterProtocol `json:"protocols,omitempty"`
}

type ClusterPeer struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *NamespacedPod        `json:"pods,omitempty"`
	Nodes      *metav1.LabelSelector `json:"nodes,omitempty"`
	Networks   []string              `json:"networks,omitempty"`
}

type NamespacedPod struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	PodSelector       metav1.LabelSelector `json:"podSelector"`
}

type ClusterProtocol struct {
	TCP                  *ClusterPort `json:"tcp,omitempty"`
	UDP                  *ClusterPort `json:"udp,omitempty"`
	SCTP                 *ClusterPort `json:"sctp,omitempty"`
	DestinationNamedPort string       `json:"destinationNamedPort,omitempty"`
}

type ClusterPort struct {
	DestinationPort *PortChoice `json:"destinationPort,omitempty"`
}

type PortChoice struct {
	Number int32      `json:"number,omitempty"`
	Range  *PortRange `json:"range,omitempty"`
}

type PortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// Egress says whether the policies of the source let the packet go. Who is no pod has no policies.
func (c *Cluster) Egress(p Packet) (ok bool, why string) {
	pod := c.podAt(p.Source)
	if pod == nil {
		return true, "the source is no pod"
	}
	return c.decide("egress", pod, p.Destination, p)
}

// Ingress says whether the policies of the destination let the packet in.
func (c *Cluster) Ingress(p Packet) (ok bool, why string) {
	pod := c.podAt(p.Destination)
	if pod == nil {
		return true, "the destination is no pod"
	}
	for _, n := range c.Nodes {
		if n.Name == pod.Spec.NodeName && slices.Contains(addresses(n), p.Source) {
			return true, "it comes from the pod's own node"
		}
	}
	return c.decide("ingress", pod, p.Source, p)
}

func addresses(n corev1.Node) (list []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			list = append(list, netip.MustParseAddr(a.Address))
		}
	}
	return list
}

// podAt is the pod with an address. Host-network pods are nodes, and pods that have ended have no address.
func (c *Cluster) podAt(a netip.Addr) *corev1.Pod {
	for i := range c.Pods {
		p := &c.Pods[i]
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a {
				return p
			}
		}
	}
	return nil
}

func (c *Cluster) decide(direction string, subject *corev1.Pod, peer netip.Addr, p Packet) (bool, string) {
	if other := c.podAt(peer); other == subject {
		return true, "a pod may always talk to itself"
	}
	if verdict, why := c.tier("Admin", direction, subject, peer, p); verdict != "" {
		return verdict == "Accept", why
	}
	var isolating []string
	for _, np := range c.NetworkPolicies {
		if np.Namespace != subject.Namespace || !matches(&np.Spec.PodSelector, subject.Labels) || !hasType(np, direction) {
			continue
		}
		isolating = append(isolating, np.Name)
		if direction == "ingress" {
			for i, r := range np.Spec.Ingress {
				if c.peerOfNetworkPolicy(np.Namespace, r.From, peer) && c.portOfNetworkPolicy(r.Ports, p) {
					return true, fmt.Sprintf("NetworkPolicy %s/%s ingress[%d]", np.Namespace, np.Name, i)
				}
			}
			continue
		}
		for i, r := range np.Spec.Egress {
			if c.peerOfNetworkPolicy(np.Namespace, r.To, peer) && c.portOfNetworkPolicy(r.Ports, p) {
				return true, fmt.Sprintf("NetworkPolicy %s/%s egress[%d]", np.Namespace, np.Name, i)
			}
		}
	}
	if len(isolating) > 0 {
		return false, fmt.Sprintf("isolated by %v", isolating)
	}
	if verdict, why := c.tier("Baseline", direction, subject, peer, p); verdict != "" {
		return verdict == "Accept", why
	}
	return true, "no policy decides"
}

// hasType: "If this field is not specified, it will default based on the existence of ingress or egress rules; policies
// that contain an egress section are assumed to affect egress, and all policies are assumed to affect ingress."
func hasType(np networkingv1.NetworkPolicy, direction string) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return direction == "ingress" || len(np.Spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if direction == "egress" {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(np.Spec.PolicyTypes, want)
}

func matches(s *metav1.LabelSelector, l map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(l))
}

func (c *Cluster) namespaceLabels(name string) map[string]string {
	for _, n := range c.Namespaces {
		if n.Name == name {
			return n.Labels
		}
	}
	return map[string]string{"kubernetes.io/metadata.name": name}
}

func (c *Cluster) peerOfNetworkPolicy(namespace string, peers []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	pod := c.podAt(a)
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if netip.MustParsePrefix(peer.IPBlock.CIDR).Contains(a) && !slices.ContainsFunc(peer.IPBlock.Except, func(x string) bool {
				return netip.MustParsePrefix(x).Contains(a)
			}) {
				return true
			}
			continue
		}
		if pod == nil {
			continue
		}
		if peer.NamespaceSelector == nil && pod.Namespace != namespace {
			continue
		}
		if peer.NamespaceSelector != nil && !matches(peer.NamespaceSelector, c.namespaceLabels(pod.Namespace)) {
			continue
		}
		if peer.PodSelector == nil || matches(peer.PodSelector, pod.Labels) {
			return true
		}
	}
	return false
}

func (c *Cluster) portOfNetworkPolicy(ports []networkingv1.NetworkPolicyPort, p Packet) bool {
	if len(ports) == 0 {
		return true
	}
	for _, x := range ports {
		protocol := corev1.ProtocolTCP
		if x.Protocol != nil {
			protocol = *x.Protocol
		}
		if protocol != p.Protocol {
			continue
		}
		switch {
		case x.Port == nil:
			return true
		case x.Port.Type == intstr.String:
			if c.hasNamedPort(p, x.Port.StrVal, protocol) {
				return true
			}
		case x.EndPort != nil:
			if p.Port >= x.Port.IntVal && p.Port <= *x.EndPort {
				return true
			}
		case p.Port == x.Port.IntVal:
			return true
		}
	}
	return false
}

// hasNamedPort: the destination has a container port of this name, and the packet goes to it.
func (c *Cluster) hasNamedPort(p Packet, name string, protocol corev1.Protocol) bool {
	pod := c.podAt(p.Destination)
	if pod == nil {
		return false
	}
	for _, x := range pod.Spec.Containers {
		for _, port := range x.Ports {
			if port.Name == name && cmp.Or(port.Protocol, corev1.ProtocolTCP) == protocol && port.ContainerPort == p.Port {
				return true
			}
		}
	}
	return false
}

// tier evaluates the ClusterNetworkPolicies of one tier; the verdict is empty when none decides. Which of two policies
// with the same priority is first is left open by the API; the agent takes them by name.
func (c *Cluster) tier(tier, direction string, subject *corev1.Pod, peer netip.Addr, p Packet) (verdict, why string) {
	list := slices.SortedFunc(slices.Values(c.ClusterNetworkPolicies), func(a, b ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, x := range list {
		if x.Spec.Tier != tier || !c.selects(x.Spec.Subject, subject) {
			continue
		}
		rules := x.Spec.Ingress
		if direction == "egress" {
			rules = x.Spec.Egress
		}
		for i, r := range rules {
			peers := r.From
			if direction == "egress" {
				peers = r.To
			}
			if !slices.ContainsFunc(peers, func(q ClusterPeer) bool { return c.isPeer(q, peer) }) || !c.protocolOf(r.Protocols, p) {
				continue
			}
			why := fmt.Sprintf("ClusterNetworkPolicy %s %s[%d] %s", x.Name, direction, i, r.Action)
			if r.Action == "Pass" {
				return "", why
			}
			return r.Action, why
		}
	}
	return "", ""
}

func (c *Cluster) selects(s ClusterPeer, pod *corev1.Pod) bool {
	ns := c.namespaceLabels(pod.Namespace)
	if s.Namespaces != nil {
		return matches(s.Namespaces, ns)
	}
	return matches(&s.Pods.NamespaceSelector, ns) && matches(&s.Pods.PodSelector, pod.Labels)
}

func (c *Cluster) isPeer(peer ClusterPeer, a netip.Addr) bool {
	switch {
	case peer.Namespaces != nil || peer.Pods != nil:
		pod := c.podAt(a)
		return pod != nil && c.selects(peer, pod)
	case peer.Nodes != nil:
		return slices.ContainsFunc(c.Nodes, func(n corev1.Node) bool {
			return matches(peer.Nodes, n.Labels) && slices.Contains(addresses(n), a)
		})
	}
	return slices.ContainsFunc(peer.Networks, func(x string) bool { return netip.MustParsePrefix(x).Contains(a) })
}

func (c *Cluster) protocolOf(list []ClusterProtocol, p Packet) bool {
	if len(list) == 0 {
		return true
	}
	for _, x := range list {
		if x.DestinationNamedPort != "" {
			if c.hasNamedPort(p, x.DestinationNamedPort, p.Protocol) {
				return true
			}
			continue
		}
		port := map[corev1.Protocol]*ClusterPort{corev1.ProtocolTCP: x.TCP, corev1.ProtocolUDP: x.UDP, corev1.ProtocolSCTP: x.SCTP}[p.Protocol]
		if port == nil {
			continue
		}
		d := port.DestinationPort
		if d == nil || d.Range == nil && d.Number == p.Port || d.Range != nil && p.Port >= d.Range.Start && p.Port <= d.Range.End {
			return true
		}
	}
	return false
}
