package flows

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
)

// Tuple is the first packet of a connection, as policies see it.
type Tuple struct {
	Source, Destination netip.Addr
	// Protocol is an IP protocol number; Port is the destination port of TCP, UDP and SCTP.
	Protocol uint8
	Port     uint16
}

// Decision is what policies of this node say of a Tuple.
type Decision struct {
	Allowed bool
	// Owner is the rule that decided, or the pod whose isolation did; empty where no policy has a say.
	Owner     Owner
	Direction Direction
	// Closed is true where something about the pod or its policies is not known.
	Closed bool
	// Words say it in a sentence.
	Words string
}

// Judge answers for the policies of one World. It looks at the same clauses as the switch, and so says what the
// switch does, of packets that need not exist. Make one for a World, and ask it as often as needed.
type Judge struct {
	w       *World
	tables  map[Table]*judged
	rules   map[uint32]*Rule
	pods    map[netip.Addr]Attachment
	peers   map[netip.Addr]uint32
	own     map[netip.Addr]bool
	isolate func(Attachment) *Isolation
}

// judged are the clauses of one table.
type judged struct {
	subjects, peers map[uint32][]*Clause
	ranges, ports   []*Clause
}

// NewJudge reads a World.
func NewJudge(w *World) *Judge {
	j := &Judge{
		w: w, tables: map[Table]*judged{}, rules: map[uint32]*Rule{}, pods: map[netip.Addr]Attachment{},
		peers: map[netip.Addr]uint32{}, own: map[netip.Addr]bool{}, isolate: w.isolation,
	}
	for _, t := range []Table{EgressAdmin, EgressPolicy, IngressAdmin, IngressPolicy} {
		j.tables[t] = &judged{subjects: map[uint32][]*Clause{}, peers: map[uint32][]*Clause{}}
	}
	for _, list := range w.Pods {
		for _, a := range list {
			for _, addr := range a.Addresses {
				j.pods[addr] = a
			}
		}
	}
	for _, a := range hostAddresses(w.Node) {
		j.own[a] = true
	}
	if w.Policy == nil {
		return j
	}
	for _, r := range w.Policy.Rules.All() {
		for _, id := range r.IDs {
			j.rules[id] = r
		}
	}
	for _, c := range w.Policy.Clauses.All() {
		t := j.tables[tableOf(c.Direction, c.Tier)]
		switch c.Kind {
		case Subject:
			t.subjects[c.Identity] = append(t.subjects[c.Identity], c)
		case PeerPod:
			t.peers[c.Identity] = append(t.peers[c.Identity], c)
		case PeerRange:
			t.ranges = append(t.ranges, c)
		case Port:
			t.ports = append(t.ports, c)
		}
	}
	for _, p := range w.Policy.Peers.All() {
		for _, a := range p.Addresses {
			j.peers[a] = p.Identity
		}
	}
	return j
}

// Decide says what policies of this node do to the first packet of a connection: those of the source, if it is a
// pod of this node, then those of the destination.
func (j *Judge) Decide(t Tuple) Decision {
	from, hasFrom := j.pods[t.Source]
	to, hasTo := j.pods[t.Destination]
	if hasFrom && hasTo && from.OFPort == to.OFPort {
		return Decision{Allowed: true, Words: "a pod may always talk to itself"}
	}
	last := Decision{Allowed: true, Words: "no policy of this node has a say in it"}
	if hasFrom {
		if i := j.isolate(from); i != nil {
			if last = j.direction(Egress, from, i, t, t.Destination); !last.Allowed {
				return last
			}
		}
	}
	if hasTo {
		if i := j.isolate(to); i != nil {
			if j.own[t.Source] && i.Closed == "" {
				return Decision{Allowed: true, Direction: Ingress, Words: "the node may always talk to its own pods"}
			}
			return j.direction(Ingress, to, i, t, t.Source)
		}
	}
	return last
}

func (j *Judge) direction(d Direction, pod Attachment, i *Isolation, t Tuple, peer netip.Addr) Decision {
	who := podName(pod)
	if i.Closed != "" {
		return Decision{Owner: pod.Owner(), Direction: d, Closed: true, Words: fmt.Sprintf("%s is closed: %s", who, i.Closed)}
	}
	isolating := i.Ingress
	if d == Egress {
		isolating = i.Egress
	}
	rule := j.match(tableOf(d, Admin), i.Identity, t, peer, "")
	if rule == nil || rule.Verdict == Pass {
		tier := Baseline
		if len(isolating) > 0 {
			tier = NetworkTier
		}
		rule = j.match(tableOf(d, NetworkTier), i.Identity, t, peer, tier)
		if rule == nil && len(isolating) > 0 {
			return Decision{Owner: pod.Owner(), Direction: d, Words: fmt.Sprintf("%s is isolated for %s by %s, and none of their rules allows it", who, d, strings.Join(isolating, ", "))}
		}
	}
	if rule == nil {
		return Decision{Allowed: true, Direction: d, Words: fmt.Sprintf("no rule of %s denies it, and no NetworkPolicy isolates %s", d, who)}
	}
	allowed := rule.Verdict != Deny
	verb := "denies"
	if allowed {
		verb = "allows"
	}
	return Decision{Allowed: allowed, Owner: rule.Owner, Direction: d, Words: fmt.Sprintf("%s %s it for %s", rule.Owner, verb, who)}
}

// match finds the rule of the highest priority all of whose conditions are met; tier restricts it, if not empty.
func (j *Judge) match(table Table, subject uint32, t Tuple, peer netip.Addr, tier Tier) *Rule {
	c := j.tables[table]
	type met struct {
		parts uint8
		of    uint8
	}
	found := map[uint32]met{}
	meet := func(list []*Clause) {
		for _, x := range list {
			for _, p := range x.Parts {
				m := found[p.ID]
				found[p.ID] = met{m.parts | 1<<(p.Number-1), p.Of}
			}
		}
	}
	meet(c.subjects[subject])
	if len(found) == 0 {
		return nil
	}
	if id, ok := j.peers[peer]; ok {
		meet(c.peers[id])
	}
	for _, x := range c.ranges {
		if x.Range.Contains(peer) {
			meet([]*Clause{x})
		}
	}
	for _, x := range c.ports {
		if x.Protocol == t.Protocol && x.Port&x.Mask == t.Port&x.Mask {
			meet([]*Clause{x})
		}
	}
	var best *Rule
	var top uint16
	for id, m := range found {
		r := j.rules[id]
		if r == nil || bits.OnesCount8(m.parts) != int(m.of) || tier != "" && r.Tier != tier {
			continue
		}
		if p := r.Priority(id); best == nil || p > top || p == top && r.Owner < best.Owner {
			best, top = r, p
		}
	}
	return best
}
