package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Priorities that all tables of policies share: what is decided before rules are looked at.
const (
	prioReply  = 65000 // what belongs to a connection that was allowed
	prioHost   = 64000 // the node to its own pods
	prioClosed = 63000 // a pod of which something is not known
)

// PolicyZone is the conntrack zone in which policies remember connections.
const PolicyZone = 0x7712

func ct(args string, a ...any) Action { return Action{"ct", fmt.Sprintf("("+args+")", a...)} }

// policyFlows are what every bridge has for policies.
func (p *builder) policyFlows(w *World) {
	past := gotoTable(w.afterPolicy()) // what no policy looks at, or what it allowed
	for _, f := range []Match{ipv4(), ipv6()} {
		p.add(Isolate, 20, match(f, field(toSubject, isTracked)), gotoTable(Identify))
		p.add(Isolate, 20, match(f, field(fromSubject, isTracked)), gotoTable(Identify))
		p.add(Identify, 10, f, ct("table=%d,zone=%d", Sender, PolicyZone))
	}
	p.add(Isolate, 0, nil, past)
	p.drop(Identify, 0, nil, DropNotIP)

	// A packet that comes back from conntrack was classified by an earlier table, by a datapath flow that may not have
	// been looked at since. What is not known of its sender any more must not make it free.
	p.drop(Sender, 10, field(fromSubject, isTracked), DropSenderGone)
	p.add(Sender, 0, nil, gotoTable(EgressAdmin))

	p.drop(EgressAdmin, prioReply+5, field("ct_state", "+inv+trk"), DropInvalid)
	p.add(EgressAdmin, prioReply, field("ct_state", "+rel+trk"), past)
	p.add(EgressAdmin, prioReply-1, field("ct_state", "+est+rpl+trk"), past)
	p.add(EgressAdmin, 0, nil, gotoTable(EgressPolicy))
	p.add(EgressPolicy, 0, nil, gotoTable(IngressAdmin))
	p.add(IngressAdmin, 0, nil, gotoTable(IngressPolicy))
	p.add(IngressPolicy, 0, nil, gotoTable(Commit))

	// What looks new may be the middle of a connection whose beginning was not tracked: then only what a rule
	// allowed by name tells which end began.
	remember := Actions{ct("commit,zone=%d", PolicyZone), past}
	isNew := field("ct_state", "+new+trk")
	for i, f := range []Match{ipv4(), ipv6()} {
		tcp := field([]string{"tcp", "tcp6"}[i], "")
		p.add(Commit, 100, match(field("ct_state", "+new+trk"), tcp, field("tcp_flags", "+syn-ack")), remember...)
		p.add(Commit, 90, match(isNew, tcp, field("reg0", allowedBit)), remember...)
		p.add(Commit, 80, match(isNew, tcp), past)
		p.add(Commit, 70, match(isNew, f), remember...)
	}
	p.add(Commit, 0, nil, past)
}

// hostPolicyFlows let the host itself reach the pods of its node, whatever their policies say: kubelets probe
// (Kubernetes, "Network Policies": traffic to and from the node where a pod is running is always allowed).
func (p *builder) hostPolicyFlows(w *World) {
	for _, a := range hostAddresses(w.Node) {
		p.add(IngressAdmin, prioHost, match(ipSrc(host(a)), field("reg0", isFromGateway)), set(allowedBit, "reg0"), gotoTable(Commit))
	}
}

// isolationFlows are what a pod of this node has when a policy selects it: the end of each direction in
// which it is isolated. What it sends to itself by way of a Service is not looked at.
func (p *builder) isolationFlows(w *World, a Attachment, i *Isolation) {
	in, out := inPort(a.OFPort), field("reg1", fmt.Sprintf("%#x", a.OFPort))
	to := match(field("reg0", toPod), out)
	p.add(Isolate, 100, match(in, out), gotoTable(w.afterPolicy()))
	if i.Closed != "" {
		p.drop(EgressAdmin, prioClosed, in, DropClosed)
		p.drop(IngressAdmin, prioClosed, to, DropClosed)
		return
	}
	if len(i.Egress) > 0 {
		p.drop(EgressPolicy, prioIsolated, in, DropEgress)
	}
	if len(i.Ingress) > 0 {
		p.drop(IngressPolicy, prioIsolated, to, DropIngress)
	}
}

// ruleFlows are the end of a rule: what happens to packets that meet all of its conditions.
func ruleFlows(r *Rule) []Flow {
	p := builder{owner: r.Owner}
	t := r.table()
	next, why := IngressAdmin, DropDeniedEgress
	if r.Direction == Ingress {
		next, why = Commit, DropDeniedIngress
	}
	for _, id := range r.IDs {
		m := field("conj_id", fmt.Sprint(id))
		switch r.Verdict {
		case Accept:
			p.add(t, r.Priority(id), m, set(allowedBit, "reg0"), gotoTable(next))
		case Pass:
			after := next // of the Baseline tier: nobody else is asked, and so it is allowed
			if r.Tier == Admin {
				after = tableOf(r.Direction, NetworkTier)
			}
			p.add(t, r.Priority(id), m, gotoTable(after))
		default:
			p.drop(t, r.Priority(id), m, why)
		}
	}
	return p.flows
}

// clauseFlows are the flows of a condition.
func clauseFlows(w *World, c *Clause) []Flow {
	p := builder{owner: ClauseOwner(c.Key())}
	actions := make(Actions, len(c.Parts))
	for i, part := range c.Parts {
		actions[i] = Action{"conjunction", fmt.Sprintf("(%d,%d/%d)", part.ID, part.Number, part.Of)}
	}
	for _, m := range c.matches(w) {
		p.add(tableOf(c.Direction, c.Tier), c.Priority, m, actions...)
	}
	return p.flows
}

// matches are the condition in the words of a flow, once for each family that it can be met in.
func (c Condition) matches(w *World) []Match {
	identity := fmt.Sprintf("%#x", c.Identity)
	switch c.Kind {
	case Subject:
		if c.Direction == Egress {
			return []Match{field(fromSubject, identity)}
		}
		return []Match{field(toSubject, identity)}
	case PeerPod:
		if c.Direction == Egress {
			return []Match{field(toPeer, identity)}
		}
		return []Match{field(fromPeer, identity)}
	case PeerRange:
		if c.Range.Bits() == 0 {
			return []Match{family(c.Range.Addr())}
		}
		if c.Direction == Egress {
			return []Match{ipDst(c.Range)}
		}
		return []Match{ipSrc(c.Range)}
	}
	var out []Match
	for _, v4 := range w.families() {
		m := field(protocolName(c.Protocol, v4), "")
		if c.Mask != 0 {
			m = append(m, Field{"tp_dst", portMatch(c.Port, c.Mask)})
		}
		out = append(out, m)
	}
	return out
}

// families are those that pods of this node have: true for IPv4. Both, when no podCIDR is known.
func (w *World) families() []bool {
	var out []bool
	for _, v4 := range []bool{true, false} {
		if len(w.Node.PodCIDRs) == 0 || slices.ContainsFunc(w.Node.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() == v4 }) {
			out = append(out, v4)
		}
	}
	return out
}

func protocolName(protocol uint8, v4 bool) string {
	name := map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}[protocol]
	if !v4 {
		name += "6"
	}
	return name
}

// portMatch is a port, or ports with a mask, as OVS prints them.
func portMatch(port, mask uint16) string {
	if mask == 0xffff {
		return fmt.Sprint(port)
	}
	return fmt.Sprintf("%#x/%#x", port, mask)
}

// peerPolicyFlows tell who has the addresses of a pod, to the rules that ask.
func peerPolicyFlows(key string, x *Peer) []Flow {
	p := builder{owner: PeerOwner(key)}
	identity := fmt.Sprintf("%#x", x.Identity)
	for _, a := range x.Addresses {
		if x.Source {
			p.add(Isolate, 30, match(ipSrc(host(a)), field(toSubject, isTracked)), set(identity, fromPeer), gotoTable(Identify))
		}
		if x.Destination {
			p.add(Identify, 20, ipDst(host(a)), set(identity, toPeer), ct("table=%d,zone=%d", Sender, PolicyZone))
		}
	}
	return p.flows
}

// compilePolicy compiles the owners of rules, clauses and peers.
func compilePolicy(w *World, o Owner, kind, name string) []Flow {
	if w.Policy == nil {
		return nil
	}
	switch kind {
	case "networkpolicy", "clusternetworkpolicy":
		if r, ok := w.Policy.Rules.Get(string(o)); ok {
			return ruleFlows(r)
		}
	case "clause":
		if c, ok := w.Policy.Clauses.Get(name); ok {
			return clauseFlows(w, c)
		}
	case "peer":
		if x, ok := w.Policy.Peers.Get(name); ok {
			return peerPolicyFlows(name, x)
		}
	}
	return nil
}

// PolicyOf is the policy that a rule's owner is part of: "networkpolicy/shop/db" or "clusternetworkpolicy/x".
func PolicyOf(o Owner) string {
	words := strings.Split(string(o), "/")
	if len(words) > 2 {
		return strings.Join(words[:len(words)-2], "/")
	}
	return string(o)
}
