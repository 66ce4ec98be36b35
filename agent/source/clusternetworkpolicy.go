package source

import (
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// clusterPolicies is the group and version of ClusterNetworkPolicies. Its Go module is published in no version that
// has them, and this is all of it that is read.
func clusterPolicies() schema.GroupVersion {
	return schema.GroupVersion{Group: "policy.networking.k8s.io", Version: "v1alpha2"}
}

// ClusterNetworkPolicy is policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy as far as it is read.
type ClusterNetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Tier     string        `json:"tier"`
		Priority int32         `json:"priority"`
		Subject  clusterPeer   `json:"subject"`
		Ingress  []clusterRule `json:"ingress,omitempty"`
		Egress   []clusterRule `json:"egress,omitempty"`
	} `json:"spec"`
}

// clusterPolicyList is what a list of them is.
type clusterPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []ClusterNetworkPolicy `json:"items"`
}

type clusterRule struct {
	Name      string            `json:"name,omitempty"`
	Action    string            `json:"action"`
	From      []clusterPeer     `json:"from,omitempty"`
	To        []clusterPeer     `json:"to,omitempty"`
	Protocols []clusterProtocol `json:"protocols,omitempty"`
}

// clusterPeer has exactly one field; a subject has one of the first two.
type clusterPeer struct {
	Namespaces *metav1.LabelSelector `json:"namespaces,omitempty"`
	Pods       *clusterPodSelector   `json:"pods,omitempty"`
	Nodes      *metav1.LabelSelector `json:"nodes,omitempty"`
	// An empty list is one that names nobody.
	Networks    []string `json:"networks,omitzero"`
	DomainNames []string `json:"domainNames,omitzero"`
}

type clusterPodSelector struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
	PodSelector       metav1.LabelSelector `json:"podSelector"`
}

// clusterProtocol has exactly one field.
type clusterProtocol struct {
	TCP       *clusterPort `json:"tcp,omitempty"`
	UDP       *clusterPort `json:"udp,omitempty"`
	SCTP      *clusterPort `json:"sctp,omitempty"`
	NamedPort string       `json:"destinationNamedPort,omitempty"`
}

type clusterPort struct {
	DestinationPort *clusterPortNumber `json:"destinationPort,omitempty"`
}

type clusterPortNumber struct {
	Number int32             `json:"number,omitempty"`
	Range  *clusterPortRange `json:"range,omitempty"`
}

type clusterPortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// DeepCopyObject implements runtime.Object. Nothing here is ever changed once it has been decoded.
func (p *ClusterNetworkPolicy) DeepCopyObject() runtime.Object {
	out := *p
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *clusterPolicyList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

func addClusterPolicies(s *runtime.Scheme) error {
	gv := clusterPolicies()
	s.AddKnownTypeWithName(gv.WithKind("ClusterNetworkPolicy"), &ClusterNetworkPolicy{})
	s.AddKnownTypeWithName(gv.WithKind("ClusterNetworkPolicyList"), &clusterPolicyList{})
	metav1.AddToGroupVersion(s, gv)
	return nil
}

// brokenSubject begins what is said of a policy whose subject cannot be used.
const brokenSubject = "spec.subject: "

// convertClusterNetworkPolicy takes what a ClusterNetworkPolicy says. As its documentation asks, a rule that cannot be
// read matches nothing where it accepts, and denies everything where it denies or passes.
func convertClusterNetworkPolicy(o object) (any, []Problem) {
	n := o.(*ClusterNetworkPolicy)
	out := &policy.Policy{Name: n.Name, UID: string(n.UID), Tier: flows.Tier(n.Spec.Tier), Priority: int(n.Spec.Priority)}
	var problems []Problem
	problem := func(format string, args ...any) {
		problems = append(problems, Problem{Reason: fmt.Sprintf(format, args...)})
	}
	denies := false
	rules := func(direction string, list []clusterRule) []policy.Rule {
		var rules []policy.Rule
		for i, x := range list {
			peers := x.From
			if direction == "egress" {
				peers = x.To
			}
			r, err := clusterNetworkRule(x, peers, direction == "egress")
			if err != nil && x.Action == string(flows.Accept) {
				r = policy.Rule{Verdict: flows.Accept, Broken: err.Error()}
				problem("spec.%s[%d]%s: %v; the rule matches nothing until it is corrected.", direction, i, named(x.Name), err)
			} else if err != nil {
				r = policy.Rule{Verdict: flows.Deny, AnyPeer: true, AnyPort: true}
				problem("spec.%s[%d]%s: %v; the rule denies everything until it is corrected.", direction, i, named(x.Name), err)
			}
			denies = denies || r.Verdict == flows.Deny
			rules = append(rules, r)
		}
		return rules
	}
	out.Ingress = rules("ingress", n.Spec.Ingress)
	out.Egress = rules("egress", n.Spec.Egress)

	broken := func(format string, args ...any) {
		out.Broken = fmt.Sprintf(format, args...)
		problem("%s; the pods that it selects are closed until it is corrected.", out.Broken)
	}
	subject, err := clusterPods(n.Spec.Subject)
	switch {
	case err != nil && !denies:
		// It could only have opened something.
		problem("spec.subject: %v; the policy selects nothing until it is corrected.", err)
		return nil, problems
	case err != nil:
		broken(brokenSubject+"%v, so every pod may be meant", err)
		return out, problems
	}
	out.Subject = *subject
	if out.Tier != flows.Admin && out.Tier != flows.Baseline {
		broken("spec.tier %q is neither Admin nor Baseline", n.Spec.Tier)
	} else if out.Priority < 0 || out.Priority > 1000 {
		broken("spec.priority %d is not within 0–1000", out.Priority)
	}
	return out, problems
}

func named(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (%q)", name)
}

func clusterNetworkRule(x clusterRule, peers []clusterPeer, egress bool) (policy.Rule, error) {
	r := policy.Rule{Verdict: flows.Verdict(x.Action), AnyPort: len(x.Protocols) == 0}
	if r.Verdict != flows.Accept && r.Verdict != flows.Deny && r.Verdict != flows.Pass {
		return r, fmt.Errorf("action %q is none of Accept, Deny, Pass", x.Action)
	}
	if len(peers) == 0 {
		return r, fmt.Errorf("it names no peer")
	}
	for i, p := range peers {
		peer, err := clusterNetworkPeer(p, egress)
		if err != nil {
			return r, fmt.Errorf("peer %d: %w", i, err)
		}
		r.Peers = append(r.Peers, peer)
	}
	for i, p := range x.Protocols {
		port, err := clusterNetworkPort(p)
		if err != nil {
			return r, fmt.Errorf("protocols[%d]: %w", i, err)
		}
		r.Ports = append(r.Ports, port)
	}
	return r, nil
}

func clusterNetworkPeer(p clusterPeer, egress bool) (policy.Peer, error) {
	others := p.Nodes != nil || p.Networks != nil || p.DomainNames != nil
	switch {
	case (p.Namespaces != nil || p.Pods != nil) && !others:
		pods, err := clusterPods(p)
		return policy.Peer{Pods: pods}, err
	case p.DomainNames != nil:
		return policy.Peer{}, fmt.Errorf("domainNames are not supported; use networks")
	case !egress || p.Namespaces != nil || p.Pods != nil || (p.Nodes != nil) == (p.Networks != nil):
		return policy.Peer{}, fmt.Errorf("exactly one of namespaces, pods and, for egress, nodes, networks is needed; is the CRD newer than this agent?")
	case p.Nodes != nil:
		nodes, err := selector(p.Nodes)
		return policy.Peer{Nodes: &nodes}, err
	}
	var ranges []netip.Prefix
	for i, text := range p.Networks {
		c, err := cidrOf(text)
		if err != nil {
			return policy.Peer{}, fmt.Errorf("networks[%d] %w", i, err)
		}
		ranges = append(ranges, c)
	}
	return policy.Peer{Ranges: ranges}, nil
}

// clusterPods is a choice of pods: all of some namespaces, or some.
func clusterPods(p clusterPeer) (*policy.Pods, error) {
	out := &policy.Pods{}
	var err error
	switch {
	case (p.Namespaces != nil) == (p.Pods != nil):
		return nil, fmt.Errorf("exactly one of namespaces and pods is needed")
	case p.Namespaces != nil:
		if out.Namespaces, err = selector(p.Namespaces); err != nil {
			return nil, fmt.Errorf("namespaces: %w", err)
		}
		return out, nil
	}
	if out.Namespaces, err = selector(&p.Pods.NamespaceSelector); err != nil {
		return nil, fmt.Errorf("pods.namespaceSelector: %w", err)
	}
	if out.Pods, err = selector(&p.Pods.PodSelector); err != nil {
		return nil, fmt.Errorf("pods.podSelector: %w", err)
	}
	return out, nil
}

func clusterNetworkPort(p clusterProtocol) (policy.Ports, error) {
	var out policy.Ports
	var port *clusterPort
	found := 0
	for _, x := range []struct {
		port   *clusterPort
		number uint8
	}{{p.TCP, 6}, {p.UDP, 17}, {p.SCTP, 132}} {
		if x.port != nil {
			port, out.Protocol = x.port, x.number
			found++
		}
	}
	if p.NamedPort != "" {
		out.Name = p.NamedPort
		found++
	}
	if found != 1 {
		return out, fmt.Errorf("exactly one of tcp, udp, sctp and destinationNamedPort is needed; is the CRD newer than this agent?")
	}
	if port == nil || port.DestinationPort == nil {
		return out, nil
	}
	d := port.DestinationPort
	switch {
	case (d.Number != 0) == (d.Range != nil):
		return out, fmt.Errorf("destinationPort needs either number or range")
	case d.Range != nil:
		return portRange(out, d.Range.Start, d.Range.End)
	}
	return portRange(out, d.Number, d.Number)
}
