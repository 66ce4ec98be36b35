package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twill-net/twill/flows"
)

// Labels are the labels of an object in one string, "key=value,key=value", sorted: neither keys nor values can
// hold an equals sign or a comma. That is a fifth of the memory of a map.
type Labels string

// LabelsOf makes Labels of a map.
func LabelsOf(m map[string]string) Labels {
	parts := make([]string, 0, len(m))
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return Labels(strings.Join(parts, ","))
}

// Get returns the value of a label.
func (l Labels) Get(key string) (string, bool) {
	for part := range strings.SplitSeq(string(l), ",") {
		if k, v, ok := strings.Cut(part, "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// Pod is what policies can use of a Pod. Pods that have the node's own addresses (hostNetwork) and those that
// have ended are none.
type Pod struct {
	Namespace, Name string
	// UID is of the object; Static is what the kubelet calls a static pod, whose object is only a mirror.
	UID, Static string
	Labels      Labels
	Addresses   []netip.Addr
	Ports       []NamedPort
	Created     time.Time
	// Leaving is true once the pod is being deleted.
	Leaving bool
}

// NamedPort is a port of a container that has a name.
type NamedPort struct {
	Name     string
	Protocol uint8 // IP protocol number
	Number   uint16
}

// Key is namespace/name.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// Namespace is a Namespace and its labels.
type Namespace struct {
	Name   string
	Labels Labels
}

// Node is a Node, for rules that name nodes.
type Node struct {
	Name      string
	Labels    Labels
	Addresses []netip.Addr
}

// Operator is that of a requirement (Kubernetes, "Labels and Selectors").
type Operator string

const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one part of a selector.
type Requirement struct {
	Key    string
	Op     Operator
	Values []string // sorted
}

// Selector matches labels that meet all requirements; without any it matches everything.
type Selector []Requirement

// Matches tells whether the labels meet the selector.
func (s Selector) Matches(l Labels) bool {
	for _, r := range s {
		v, has := l.Get(r.Key)
		ok := false
		switch r.Op {
		case In:
			ok = has && slices.Contains(r.Values, v)
		case NotIn:
			ok = !has || !slices.Contains(r.Values, v)
		case Exists:
			ok = has
		case DoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

// String is the selector as kubectl takes it; equal selectors have equal strings.
func (s Selector) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		switch r.Op {
		case In, NotIn:
			parts[i] = r.Key + " " + strings.ToLower(string(r.Op)) + " (" + strings.Join(r.Values, ",") + ")"
		case Exists:
			parts[i] = r.Key
		default:
			parts[i] = "!" + r.Key
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// Pods selects pods: those of one namespace, or of all whose labels match Namespaces.
type Pods struct {
	// Namespace is the one namespace; empty for those that Namespaces selects.
	Namespace  string
	Namespaces Selector
	Pods       Selector
}

func (p Pods) String() string {
	if p.Namespace != "" {
		return "namespace " + p.Namespace + "; " + p.Pods.String()
	}
	return "namespaces " + p.Namespaces.String() + "; " + p.Pods.String()
}

// Peer is the other end that a rule speaks of: one of the three.
type Peer struct {
	Pods   *Pods
	Ranges []netip.Prefix // exceptions are already taken out
	Nodes  *Selector
}

// Ports is one entry of a rule's ports.
type Ports struct {
	// Protocol is an IP protocol number; 0 with a Name: whatever the container says.
	Protocol uint8
	// First and Last are destination ports, both 0 for all.
	First, Last uint16
	// Name is a named port, looked up at the pod that receives.
	Name string
}

// Rule is one rule of a policy. AnyPeer and AnyPort say that the rule does not restrict them: an empty list of
// Peers or Ports then means nothing, else nobody.
type Rule struct {
	Verdict flows.Verdict
	AnyPeer bool
	Peers   []Peer
	AnyPort bool
	Ports   []Ports
	// Broken says why the rule cannot be used.
	Broken string
}

// Policy is a NetworkPolicy or a ClusterNetworkPolicy.
type Policy struct {
	// Namespace is empty for a ClusterNetworkPolicy.
	Namespace, Name, UID string
	Tier                 flows.Tier
	// Priority orders ClusterNetworkPolicies, smaller first.
	Priority int
	Subject  Pods
	// Isolates says in which directions a NetworkPolicy isolates the pods that it selects.
	IsolatesIngress, IsolatesEgress bool
	Ingress, Egress                 []Rule
	// Broken says why the policy cannot be used as a whole; its pods are closed.
	Broken string
}

// Owner is networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME.
func (p *Policy) Owner() string {
	if p.Namespace == "" {
		return "clusternetworkpolicy/" + p.Name
	}
	return "networkpolicy/" + p.Namespace + "/" + p.Name
}

// title is how an operator names it.
func (p *Policy) title() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

func (p *Policy) rules(d flows.Direction) []Rule {
	if d == flows.Ingress {
		return p.Ingress
	}
	return p.Egress
}

// Is tells whether the pod has the UID that a runtime told; one that told none means any.
func (p *Pod) Is(uid string) bool {
	return uid == "" || p.UID == "" || uid == p.UID || uid == p.Static
}
