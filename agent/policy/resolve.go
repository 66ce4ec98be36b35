package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// Policy returns what everything that is known comes to. When nothing of it has changed, it is the same as before.
func (ix *Index) Policy() *flows.Policy {
	ix.settle()
	pods, podsGone := map[string]*flows.Isolation{}, []string(nil)
	for key := range ix.dirty.isolation {
		now := ix.isolation(key)
		was, had := ix.out.Pods.Get(key)
		switch {
		case now == nil && had:
			podsGone = append(podsGone, key)
		case now != nil && !now.Equal(was):
			pods[key] = now
		}
	}
	clauses, clausesGone := map[string]*flows.Clause{}, []string(nil)
	for c := range ix.dirty.conditions {
		key := c.Key()
		parts := ix.parts(c)
		was, had := ix.out.Clauses.Get(key)
		switch {
		case len(parts) == 0 && had:
			clausesGone = append(clausesGone, key)
		case len(parts) > 0 && (!had || !slices.Equal(was.Parts, parts)):
			clauses[key] = &flows.Clause{Condition: c, Parts: parts}
		}
	}
	peers, peersGone := map[string]*flows.Peer{}, []string(nil)
	for key := range ix.dirty.peers {
		now := ix.peer(key)
		was, had := ix.out.Peers.Get(key)
		switch {
		case now == nil && had:
			peersGone = append(peersGone, key)
		case now != nil && (!had || was.Identity != now.Identity || was.Source != now.Source || was.Destination != now.Destination ||
			!slices.Equal(was.Addresses, now.Addresses)):
			peers[key] = now
		}
	}
	rules, rulesGone := ix.changedRules()
	failures := ix.failures()
	ix.dirty = newDirt()
	if len(pods)+len(podsGone)+len(clauses)+len(clausesGone)+len(peers)+len(peersGone)+len(rules)+len(rulesGone) == 0 &&
		maps.Equal(failures, ix.out.Failures) {
		return ix.out
	}
	out := *ix.out
	out.Failures = failures
	with(&out.Pods, pods, podsGone)
	with(&out.Clauses, clauses, clausesGone)
	with(&out.Peers, peers, peersGone)
	with(&out.Rules, rules, rulesGone)
	ix.out = &out
	return ix.out
}

func with[V any](s **flows.Shards[V], put map[string]V, gone []string) {
	if len(put)+len(gone) > 0 {
		*s = (*s).With(put, gone)
	}
}

// settle finds out which policies select a pod of this node, puts them in force and fills their rules. That changes
// no group any more, only, where numbers collide, those of other rules: names have an order, so it ends.
func (ix *Index) settle() {
	selected := map[string]bool{}
	for key := range ix.dirty.local {
		selected[key] = true
	}
	for key := range selected {
		ix.choose(key)
	}
	for len(ix.dirty.rules) > 0 {
		again := ix.dirty.rules
		ix.dirty.rules = map[*ruleState]bool{}
		for r := range again {
			ix.fill(r)
		}
	}
}

// choose brings the policies that select a pod of this node up to date.
func (ix *Index) choose(key string) {
	l, here := ix.local[key]
	m := ix.known(key)
	ix.dirty.isolation[key] = true
	look := func(ps *policyState) {
		if here && m != nil && ix.selects(ps.Policy, l.Namespace, m.Labels) {
			ix.selectPod(ps, key)
		} else if ps.local[key] {
			if ix.unselect(ps, key); len(ps.local) == 0 {
				ix.end(ps)
			}
		}
	}
	namespace, _, _ := strings.Cut(key, "/")
	if s := ix.namespaces[namespace]; s != nil {
		for _, ps := range s.policies {
			look(ps)
		}
	}
	for _, ps := range ix.cluster {
		look(ps)
	}
	if m != nil && m.group != nil {
		ix.soil(m.group)
	}
}

// selectPod notes that a policy selects a pod of this node, and has it put in force.
func (ix *Index) selectPod(ps *policyState, key string) {
	ps.local[key] = true
	if ix.selected[key] == nil {
		ix.selected[key] = map[*policyState]bool{}
	}
	ix.selected[key][ps] = true
	ix.dirty.isolation[key] = true
	ix.begin(ps)
}

func (ix *Index) unselect(ps *policyState, key string) {
	delete(ps.local, key)
	if delete(ix.selected[key], ps); len(ix.selected[key]) == 0 {
		delete(ix.selected, key)
	}
	ix.dirty.isolation[key] = true
}

// isolation is what policies do to a pod of this node.
func (ix *Index) isolation(key string) *flows.Isolation {
	l, here := ix.local[key]
	if !here {
		return nil
	}
	s := ix.namespaces[l.Namespace]
	if len(ix.cluster) == 0 && (s == nil || len(s.policies) == 0) {
		return nil
	}
	m := ix.known(key)
	switch {
	case m == nil:
		return &flows.Isolation{Identity: 1 << 31, Closed: "its Pod object is not known, and policies may select it"}
	case len(ix.cluster) > 0 && !s.known:
		return &flows.Isolation{Identity: 1 << 31, Closed: "its Namespace is not known, and ClusterNetworkPolicies may select it"}
	}
	out := &flows.Isolation{Identity: 1 << 31}
	policies := slices.SortedFunc(maps.Keys(ix.selected[key]), func(a, b *policyState) int { return cmp.Compare(a.owner, b.owner) })
	if len(policies) == 0 {
		return nil
	}
	for _, ps := range policies {
		if ps.Broken != "" {
			out.Closed = fmt.Sprintf("%s cannot be used: %s", ps.owner, ps.Broken)
		}
		if ps.crowded {
			out.Closed = ps.crowd()
		}
		if ps.IsolatesIngress {
			out.Ingress = append(out.Ingress, ps.title())
		}
		if ps.IsolatesEgress {
			out.Egress = append(out.Egress, ps.title())
		}
	}
	if m.group != nil && m.group.identity != 0 {
		out.Identity = m.group.identity
	}
	return out
}

// peer is what rules know of a pod.
func (ix *Index) peer(key string) *flows.Peer {
	m := ix.pods[key]
	if m == nil || m.group == nil || m.group.identity == 0 {
		return nil
	}
	p := &flows.Peer{Identity: m.group.identity, Source: m.group.asks(flows.Ingress), Destination: m.group.asks(flows.Egress)}
	for _, a := range m.Addresses {
		if ix.holders[a] == m && !slices.Contains(p.Addresses, a) {
			p.Addresses = append(p.Addresses, a)
		}
	}
	if len(p.Addresses) == 0 || !p.Source && !p.Destination {
		return nil
	}
	slices.SortFunc(p.Addresses, netip.Addr.Compare)
	return p
}

// parts are the parts of rules that a condition meets.
func (ix *Index) parts(c flows.Condition) []flows.Part {
	once := map[flows.Part]bool{}
	if c.Kind != flows.Subject && c.Kind != flows.PeerPod {
		for p := range ix.plain[c] {
			once[p] = true
		}
	} else if g := ix.byIdentity[c.Identity]; g != nil && (c.Kind != flows.Subject || ix.hasLocal(g)) {
		b := bucket{c.Direction, c.Tier, c.Priority, c.Kind}
		for s := range g.selectors {
			for u := range s.users[b] {
				if u.filter == (NamedPort{}) || slices.Contains(g.ports, u.filter) {
					once[u.Part] = true
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(once), func(a, b flows.Part) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Number, b.Number))
	})
}

func (ix *Index) hasLocal(g *group) bool {
	for key := range g.space.local {
		if m := ix.known(key); m != nil && m.group == g {
			return true
		}
	}
	return false
}

func (ix *Index) changedRules() (map[string]*flows.Rule, []string) {
	put, gone := map[string]*flows.Rule{}, []string(nil)
	now := map[string]*flows.Rule{}
	for owner := range ix.dirty.owners {
		words := strings.Split(owner, "/")
		if ps := ix.policies[strings.Join(words[:len(words)-2], "/")]; ps != nil {
			for _, r := range ps.rules {
				if string(r.owner) == owner {
					now[owner] = r.out
				}
			}
		}
	}
	for owner := range ix.dirty.owners {
		was, had := ix.out.Rules.Get(owner)
		r := now[owner]
		switch {
		case r == nil && had:
			gone = append(gone, owner)
		case r != nil && (!had || !slices.Equal(was.IDs, r.IDs) || was.Verdict != r.Verdict || was.Tier != r.Tier || was.Rank != r.Rank):
			put[owner] = r
		}
	}
	return put, gone
}

// failures says what of the policies cannot be used.
func (ix *Index) failures() map[string]string {
	out := maps.Clone(ix.out.Failures)
	if out == nil {
		out = map[string]string{}
	}
	for owner := range ix.dirty.policies {
		delete(out, owner)
		ps := ix.policies[owner]
		if ps == nil {
			continue
		}
		var faults []string
		if ps.Broken != "" {
			faults = append(faults, ps.Broken+"; the pods that it selects are closed")
		}
		if ps.crowded {
			faults = append(faults, ps.crowd())
		}
		for _, d := range []flows.Direction{flows.Ingress, flows.Egress} {
			for i, r := range ps.Policy.rules(d) {
				if r.Broken != "" {
					faults = append(faults, fmt.Sprintf("rule %s[%d]: %s; it allows nothing", d, i, r.Broken))
				}
			}
		}
		if len(faults) > 0 {
			out[owner] = strings.Join(faults, "; ")
		}
	}
	return out
}

// perPriority is how many rules of one direction there can be at one priority of a tier.
const perPriority = 50

func (ps *policyState) crowd() string {
	return fmt.Sprintf("%s: the ClusterNetworkPolicies of tier %s with priority %d have more than %d rules; give them different priorities. The pods that it selects are closed.",
		ps.owner, ps.Tier, ps.Priority, perPriority)
}

// ranks orders the ClusterNetworkPolicies with the same tier and priority as ps, by name.
func (ix *Index) ranks(ps *policyState) {
	if ps == nil || ps.Namespace != "" {
		return
	}
	rank := ps.Priority * perPriority
	for _, owner := range slices.Sorted(maps.Keys(ix.cluster)) {
		x := ix.cluster[owner]
		if x.Tier != ps.Tier || x.Priority != ps.Priority {
			continue
		}
		size := max(len(x.Ingress), len(x.Egress))
		crowded := rank+size > (ps.Priority+1)*perPriority
		if x.rank != rank || x.crowded != crowded {
			ix.end(x)
			x.rank, x.crowded = rank, crowded
			ix.dirty.policies[owner] = true
			for key := range x.local {
				ix.dirty.local[key] = true
			}
		}
		rank += size
	}
}
