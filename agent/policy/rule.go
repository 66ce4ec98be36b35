package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/flows"
)

// policyState is a policy and what of it is in force.
type policyState struct {
	*Policy
	owner string
	// local are the pods of this node that it selects. While there are none, nothing else is done for it.
	local   map[string]bool
	subject *selector
	rules   []*ruleState
	rank    int
	crowded bool // no rank is left at its priority
}

func (ps *policyState) namespace() string {
	if ps == nil {
		return ""
	}
	return ps.Namespace
}

// ruleState is a rule in force.
type ruleState struct {
	policy    *policyState
	rule      Rule
	direction flows.Direction
	index     int
	owner     flows.Owner

	uses  []use
	plain []plainUse
	peers []*selector // acquired
	names []string    // mentioned
	ids   []string    // names of its conjunctions
	out   *flows.Rule
}

type use struct {
	selector *selector
	bucket   bucket
	user     user
}

type plainUse struct {
	condition flows.Condition
	part      flows.Part
}

// begin puts a policy in force.
func (ix *Index) begin(ps *policyState) {
	if ps.subject != nil || ps.Broken != "" || ps.crowded {
		return
	}
	ps.subject = ix.acquire(ps.Subject)
	for _, d := range []flows.Direction{flows.Ingress, flows.Egress} {
		for i, r := range ps.Policy.rules(d) {
			if r.Broken != "" {
				continue
			}
			rs := &ruleState{policy: ps, rule: r, direction: d, index: i, owner: flows.Owner(fmt.Sprintf("%s/%s/%d", ps.owner, d, i))}
			ps.rules = append(ps.rules, rs)
			ix.hold(rs)
			ix.dirty.rules[rs] = true
		}
	}
}

// end takes it out of force.
func (ix *Index) end(ps *policyState) {
	for _, r := range ps.rules {
		ix.letGo(r)
	}
	ps.rules = nil
	if ps.subject != nil {
		ix.release(ps.subject)
		ps.subject = nil
	}
}

// hold keeps the selectors and port names of a rule while it is in force: filling it anew changes no group.
func (ix *Index) hold(r *ruleState) {
	for _, p := range r.rule.Peers {
		if p.Nodes != nil {
			ix.viaNodes[r] = true
		}
		if p.Pods != nil {
			r.peers = append(r.peers, ix.acquire(*p.Pods))
		}
	}
	for _, p := range r.rule.Ports {
		if p.Name != "" {
			r.names = append(r.names, p.Name)
			ix.mentionPort(p.Name, 1)
		}
	}
	if len(r.names) > 0 {
		r.peers = append(r.peers, ix.acquire(Pods{})) // whoever may have such a port
		r.receivers().namers[r] = true
	}
}

// fill enters a rule into the selectors and conditions that make it true, anew if it was entered before.
func (ix *Index) fill(r *ruleState) {
	before := r.ids
	ix.empty(r)
	r.ids = nil
	r.out = &flows.Rule{Owner: r.owner, Direction: r.direction, Tier: r.policy.Tier, Verdict: r.rule.Verdict, Rank: r.policy.rank + r.index}
	var numeric, named []Ports
	for _, p := range r.rule.Ports {
		if p.Name == "" {
			numeric = append(numeric, p)
		} else {
			named = append(named, p)
		}
	}
	if r.rule.AnyPort || len(numeric) > 0 {
		ix.variant(r, "", numeric, NamedPort{}, false)
	}
	if len(named) > 0 {
		for _, n := range ix.numbersOf(r, named) {
			port := []Ports{{Protocol: n.Protocol, First: n.Number, Last: n.Number}}
			name := fmt.Sprintf("#%s/%d/%d", n.Name, n.Protocol, n.Number)
			if r.direction == flows.Ingress {
				ix.variant(r, name, port, n, false)
				continue
			}
			if !r.rule.AnyPeer {
				ix.variant(r, name, port, n, false)
			}
			if r.rule.AnyPeer || slices.ContainsFunc(r.rule.Peers, func(p Peer) bool { return p.Pods == nil }) {
				ix.variant(r, name+"#range", port, n, true)
			}
		}
	}
	slices.Sort(r.out.IDs)
	for _, name := range before {
		if !slices.Contains(r.ids, name) {
			ix.forget(name)
		}
	}
	ix.dirty.owners[string(r.owner)] = true
}

// forget gives the number of a conjunction back.
func (ix *Index) forget(name string) {
	delete(ix.byConjunction, name)
	ix.renumbered(ix.conjunctions.free(name))
}

// receivers are the pods at which the named ports of a rule are looked up.
func (r *ruleState) receivers() *selector {
	if r.direction == flows.Ingress {
		return r.policy.subject
	}
	return r.peers[len(r.peers)-1]
}

// numbersOf are the numbers that the named ports of a rule have at the pods that may receive.
func (ix *Index) numbersOf(r *ruleState, named []Ports) []NamedPort {
	found := map[NamedPort]bool{}
	for g := range r.receivers().groups {
		for _, p := range g.ports {
			if slices.ContainsFunc(named, func(n Ports) bool { return n.Name == p.Name && (n.Protocol == 0 || n.Protocol == p.Protocol) }) {
				found[p] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b NamedPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
}

// variant enters one conjunction of a rule. With a filter, only pods that have this named port receive: of
// ingress the subjects, of egress the peers or, where these are ranges, whoever has an address of them.
func (ix *Index) variant(r *ruleState, name string, ports []Ports, filter NamedPort, ranges bool) {
	// Who is met in which part: subjects, then peers, then ports, then who has the named port.
	full := string(r.owner) + name
	id, moved := ix.conjunctions.get(full)
	ix.renumbered(moved)
	ix.byConjunction[full] = r
	r.ids = append(r.ids, full)
	r.out.IDs = append(r.out.IDs, id)

	peers := !r.rule.AnyPeer || r.rule.AnyPort && !ranges
	of := uint8(1)
	if peers {
		of++
	}
	if !r.rule.AnyPort {
		of++
	}
	if ranges {
		of++
	}
	number := uint8(0)
	next := func() flows.Part { number++; return flows.Part{ID: id, Number: number, Of: of} }
	at := bucket{r.direction, r.policy.Tier, r.out.Priority(id), flows.Subject}

	subject := user{Part: next()}
	if r.direction == flows.Ingress {
		subject.filter = filter
	}
	ix.enter(r, r.policy.subject, at, subject)
	if peers {
		ix.peers(r, at, next(), filter, ranges)
	}
	if !r.rule.AnyPort {
		part := next()
		for _, p := range ports {
			for _, m := range Masks(p.First, p.Last) {
				c := at.condition(0)
				c.Kind, c.Protocol, c.Port, c.Mask = flows.Port, p.Protocol, m.Port, m.Mask
				ix.enterPlain(r, c, part)
			}
		}
	}
	if ranges {
		at.kind = flows.PeerPod
		ix.enter(r, r.peers[len(r.peers)-1], at, user{Part: next(), filter: filter})
	}
}

// peers enters who the peers are.
func (ix *Index) peers(r *ruleState, at bucket, part flows.Part, filter NamedPort, ranges bool) {
	enter := func(p netip.Prefix) {
		c := at.condition(0)
		c.Kind, c.Range = flows.PeerRange, p
		ix.enterPlain(r, c, part)
	}
	if r.rule.AnyPeer {
		enter(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		enter(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		return
	}
	at.kind = flows.PeerPod
	u := user{Part: part}
	if r.direction == flows.Egress {
		u.filter = filter
	}
	withRanges := ranges || u.filter == NamedPort{}
	i := 0
	for _, p := range r.rule.Peers {
		if p.Pods != nil {
			if !ranges {
				ix.enter(r, r.peers[i], at, u)
			}
			i++
		}
		if !withRanges {
			continue
		}
		for _, x := range p.Ranges {
			enter(x)
		}
		if p.Nodes != nil {
			for _, n := range ix.nodes {
				if p.Nodes.Matches(n.Labels) {
					for _, a := range n.Addresses {
						enter(netip.PrefixFrom(a, a.BitLen()))
					}
				}
			}
		}
	}
}

func (ix *Index) enter(r *ruleState, s *selector, b bucket, u user) {
	r.uses = append(r.uses, use{s, b, u})
	if s.users[b] == nil {
		s.users[b] = map[user]int{}
	}
	s.users[b][u]++
	ix.used(s, b)
}

func (ix *Index) enterPlain(r *ruleState, c flows.Condition, part flows.Part) {
	r.plain = append(r.plain, plainUse{c, part})
	if ix.plain[c] == nil {
		ix.plain[c] = map[flows.Part]int{}
	}
	ix.plain[c][part]++
	ix.dirty.conditions[c] = true
}

// used marks the conditions of a bucket, and whoever is seen through it.
func (ix *Index) used(s *selector, b bucket) {
	for g := range s.groups {
		ix.dirty.conditions[b.condition(g.identity)] = true
	}
	if b.kind == flows.PeerPod {
		for g := range s.groups {
			if g.asks(b.direction) != g.shown(ix, b.direction) {
				for m := range g.pods {
					ix.dirty.peers[m.Key()] = true
				}
			}
		}
	}
}

// asks tells whether a rule of this direction speaks of the group as a peer.
func (g *group) asks(d flows.Direction) bool {
	for s := range g.selectors {
		for b, users := range s.users {
			if b.kind == flows.PeerPod && b.direction == d && len(users) > 0 {
				return true
			}
		}
	}
	return false
}

// shown tells what the last result says of that, by one of its pods.
func (g *group) shown(ix *Index, d flows.Direction) bool {
	for m := range g.pods {
		p, ok := ix.out.Peers.Get(m.Key())
		if !ok {
			continue
		}
		return d == flows.Ingress && p.Source || d == flows.Egress && p.Destination
	}
	return false
}

// empty undoes what fill entered, but for the numbers.
func (ix *Index) empty(r *ruleState) {
	for _, u := range r.uses {
		users := u.selector.users[u.bucket]
		if users[u.user]--; users[u.user] == 0 {
			delete(users, u.user)
		}
		if len(users) == 0 {
			delete(u.selector.users, u.bucket)
		}
		ix.used(u.selector, u.bucket)
	}
	for _, u := range r.plain {
		parts := ix.plain[u.condition]
		if parts[u.part]--; parts[u.part] == 0 {
			delete(parts, u.part)
		}
		if len(parts) == 0 {
			delete(ix.plain, u.condition)
		}
		ix.dirty.conditions[u.condition] = true
	}
	r.uses, r.plain = nil, nil
}

// letGo undoes hold and fill.
func (ix *Index) letGo(r *ruleState) {
	ix.empty(r)
	for _, name := range r.ids {
		ix.forget(name)
	}
	r.ids, r.out = nil, nil
	if len(r.names) > 0 {
		delete(r.receivers().namers, r)
	}
	delete(ix.viaNodes, r)
	delete(ix.dirty.rules, r)
	for _, s := range r.peers {
		ix.release(s)
	}
	for _, n := range r.names {
		ix.mentionPort(n, -1)
	}
	ix.dirty.owners[string(r.owner)] = true
}

// renumbered marks rules that had to change the number of a conjunction.
func (ix *Index) renumbered(names []string) {
	for _, n := range names {
		if r := ix.byConjunction[n]; r != nil {
			ix.dirty.rules[r] = true
		}
	}
}

// PortMask is a port with those bits that count.
type PortMask struct{ Port, Mask uint16 }

// Masks are the fewest masked matches that cover the ports from first to last; 0 to 0 is all.
func Masks(first, last uint16) []PortMask {
	if first == 0 && last == 0 {
		return []PortMask{{}}
	}
	var out []PortMask
	for at := uint32(first); at <= uint32(last); {
		size := uint32(1)
		for at%(size*2) == 0 && at+size*2-1 <= uint32(last) {
			size *= 2
		}
		out = append(out, PortMask{uint16(at), uint16(0x10000 - size)})
		at += size
	}
	return out
}
