package flows

import (
	"fmt"
	"net/netip"
	"slices"
)

// Policy is what NetworkPolicies and ClusterNetworkPolicies come to on this node, resolved as far as it
// does not depend on ports of the switch. It is a value: whoever resolves policies makes another one for
// each change, which shares with it all that is the same. A nil Policy isolates nobody.
//
// Pods that no policy can tell apart share an identity, a 31-bit number with the highest bit set. A rule is a
// conjunction of up to three conditions (who is the subject, who is the peer, which protocol and port), each
// met by any of several Clauses. So flows are a sum over rules, identities, ranges and ports, and addresses of
// pods stand in one flow each, however many rules they are part of.
type Policy struct {
	// Pods are the pods of this node that a policy selects, by "namespace/name".
	Pods *Shards[*Isolation]
	// Rules are what policies of these pods allow or deny, by owner.
	Rules *Shards[*Rule]
	// Clauses are the conditions of rules, by Condition.Key.
	Clauses *Shards[*Clause]
	// Peers are the pods of the cluster that rules speak of, by "namespace/name".
	Peers *Shards[*Peer]
	// Failures are objects that could not be used, in a sentence each, by object.
	Failures map[string]string
}

// Isolation is what policies do to one pod of this node.
type Isolation struct {
	// Identity is what rules know the pod by, with the highest bit set; only that bit when it is not known.
	Identity uint32
	// Ingress and Egress name the NetworkPolicies that isolate the pod in this direction, sorted. Empty: what no
	// rule decides is allowed.
	Ingress, Egress []string
	// Closed says why nothing may pass, in neither direction: something about the pod or its policies is
	// not known. Empty for all others.
	Closed string
}

// Equal is true when both are the same.
func (i *Isolation) Equal(o *Isolation) bool {
	if i == nil || o == nil {
		return i == o
	}
	return i.Identity == o.Identity && i.Closed == o.Closed &&
		slices.Equal(i.Ingress, o.Ingress) && slices.Equal(i.Egress, o.Egress)
}

// tracked marks an identity, and so a packet from or to a pod that a policy selects.
const (
	tracked     uint32 = 1 << 31
	isTracked          = "0x80000000/0x80000000"
	fromSubject        = "reg5" // identity of the pod that sends
	toSubject          = "reg6" // identity of the pod that receives
	toPeer             = "reg7" // identity of the destination, for rules of egress
	fromPeer           = "reg12"
	allowedBit         = "0x200/0x200"
)

// Direction is of a rule, as its subject sees it.
type Direction string

const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Tier is where a rule stands: Admin before NetworkPolicies, Baseline after them.
type Tier string

const (
	Admin       Tier = "Admin"
	NetworkTier Tier = "NetworkPolicy"
	Baseline    Tier = "Baseline"
)

// Priorities of rules, in the tables of their tiers.
const (
	prioAdmin    = 60000 // of rank 0; NetworkPolicies and the Baseline tier share the other table
	prioIsolated = 60000
	prioBaseline = 59999
	// lanes divide the rules of NetworkPolicies, which have no order among themselves, by priority: so no
	// flow names more than one rule in so many, and none grows beyond what an OpenFlow message holds.
	lanes    = 64
	prioLane = 61000
)

// Verdict is what a rule says of the packets that it matches.
type Verdict string

const (
	Accept Verdict = "Accept"
	Deny   Verdict = "Deny"
	// Pass leaves the decision to NetworkPolicies and, where none isolates the pod, to the Baseline tier.
	Pass Verdict = "Pass"
)

// Rule is one rule of a policy.
type Rule struct {
	// Owner is networkpolicy/NAMESPACE/NAME/DIRECTION/INDEX or clusternetworkpolicy/NAME/DIRECTION/INDEX.
	Owner Owner
	// IDs are those of its conjunctions, sorted: one, or more where a named port has several numbers.
	IDs       []uint32
	Direction Direction
	Tier      Tier
	Verdict   Verdict
	// Rank orders the rules of ClusterNetworkPolicies within tier and direction, from 0 to 51,000.
	Rank int
}

// Priority is that of the flows of the rule's conjunction ID.
func (r *Rule) Priority(id uint32) uint16 {
	switch r.Tier {
	case Admin:
		return uint16(prioAdmin - r.Rank)
	case Baseline:
		return uint16(prioBaseline - r.Rank)
	}
	return prioLane + uint16(id%lanes)
}

func (r *Rule) table() Table { return tableOf(r.Direction, r.Tier) }

func tableOf(d Direction, t Tier) Table {
	switch {
	case d == Egress && t == Admin:
		return EgressAdmin
	case d == Egress:
		return EgressPolicy
	case t == Admin:
		return IngressAdmin
	}
	return IngressPolicy
}

// ConditionKind is what a condition looks at.
type ConditionKind uint8

const (
	// Subject is the identity of the pod that the policy selects.
	Subject ConditionKind = iota + 1
	// PeerPod is the identity of the pod at the other end, PeerRange a range of its addresses.
	PeerPod
	PeerRange
	// Port is a protocol and destination ports.
	Port
)

// Condition is one match that can make a part of a rule true.
type Condition struct {
	Direction Direction
	Tier      Tier
	Priority  uint16
	Kind      ConditionKind
	Identity  uint32
	Range     netip.Prefix
	// Protocol is an IP protocol number: 6, 17 or 132. Port and Mask are of the destination port; mask 0 is any.
	Protocol   uint8
	Port, Mask uint16
}

// Key names the condition.
func (c Condition) Key() string {
	base := fmt.Sprintf("%s/%s/%d/", c.Direction, c.Tier, c.Priority)
	switch c.Kind {
	case Subject:
		return base + fmt.Sprintf("subject/%08x", c.Identity)
	case PeerPod:
		return base + fmt.Sprintf("peer/%08x", c.Identity)
	case PeerRange:
		return base + "range/" + c.Range.String()
	}
	return base + fmt.Sprintf("port/%d/%d/%#x", c.Protocol, c.Port, c.Mask)
}

// Part says that a condition is one of those for part Number, from 1, of the Of parts of the rule with this ID.
type Part struct {
	ID         uint32
	Number, Of uint8
}

// Clause is a condition and all the rules that it is part of, in the order of their IDs.
type Clause struct {
	Condition
	Parts []Part
}

// Peer is a pod of the cluster as rules know it.
type Peer struct {
	Identity  uint32
	Addresses []netip.Addr
	// Source and Destination say whether rules of ingress and of egress speak of it.
	Source, Destination bool
}

// ClauseOwner owns the flows of a condition, PeerOwner those that tell who has an address.
func ClauseOwner(key string) Owner { return Owner("clause/" + key) }
func PeerOwner(key string) Owner   { return Owner("peer/" + key) }

// isolation is what policies do to the pod of an attachment; nil if nothing.
func (w *World) isolation(a Attachment) *Isolation {
	if w.Policy == nil {
		return nil
	}
	i, _ := w.Policy.Pods.Get(a.Namespace + "/" + a.Pod)
	return i
}

// owners lists whom the policies ask flows for.
func (p *Policy) owners() []Owner {
	var out []Owner
	if p == nil {
		return nil
	}
	for k := range p.Rules.All() {
		out = append(out, Owner(k))
	}
	for k := range p.Clauses.All() {
		out = append(out, ClauseOwner(k))
	}
	for k := range p.Peers.All() {
		out = append(out, PeerOwner(k))
	}
	return out
}

// changedPolicy lists the owners whose flows may differ between two Policies.
func changedPolicy(old, now *Policy) []Owner {
	if old == now {
		return nil
	}
	none := &Policy{}
	if old == nil {
		old = none
	}
	if now == nil {
		now = none
	}
	var out []Owner
	Differences(old.Rules, now.Rules, func(a, b *Rule) bool { return a == b },
		func(k string) { out = append(out, Owner(k)) })
	Differences(old.Clauses, now.Clauses, func(a, b *Clause) bool { return a == b },
		func(k string) { out = append(out, ClauseOwner(k)) })
	Differences(old.Peers, now.Peers, func(a, b *Peer) bool { return a == b },
		func(k string) { out = append(out, PeerOwner(k)) })
	return out
}
