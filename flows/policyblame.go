package flows

import (
	"maps"
	"slices"
	"strings"
)

// PoliciesBehind are the policies that a rule, a clause or a peer is there for, as PolicyOf names them, sorted. Of
// several, those that have another rule than in the World before are meant, if there are any: the others
// have been in force.
func PoliciesBehind(before, now *World, o Owner) []string {
	if now == nil || now.Policy == nil {
		return nil
	}
	p := now.Policy
	kind, name, _ := strings.Cut(string(o), "/")
	ids := map[uint32]bool{}
	take := func(c *Clause) {
		for _, part := range c.Parts {
			ids[part.ID] = true
		}
	}
	switch kind {
	case "networkpolicy", "clusternetworkpolicy":
		return []string{PolicyOf(o)}
	case "clause":
		if c, ok := p.Clauses.Get(name); ok {
			take(c)
		}
	case "peer":
		x, ok := p.Peers.Get(name)
		for _, c := range p.Clauses.All() {
			if ok && c.Kind == PeerPod && c.Identity == x.Identity {
				take(c)
			}
		}
	}
	all, fresh := map[string]bool{}, map[string]bool{}
	for owner, r := range p.Rules.All() {
		if !slices.ContainsFunc(r.IDs, func(id uint32) bool { return ids[id] }) {
			continue
		}
		policy := PolicyOf(Owner(owner))
		all[policy] = true
		if before == nil || before.Policy == nil {
			continue
		}
		if was, ok := before.Policy.Rules.Get(owner); !ok || was != r {
			fresh[policy] = true
		}
	}
	if len(fresh) > 0 {
		all = fresh
	}
	return slices.Sorted(maps.Keys(all))
}
