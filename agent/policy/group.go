package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// member is a pod of the cluster and the group that it is in.
type member struct {
	*Pod
	group *group
	// declared are the addresses of its object; those of Pod are the ones that count.
	declared []netip.Addr
}

// space is what is known in connection with one namespace.
type space struct {
	name     string
	known    bool
	labels   Labels
	pods     map[*member]bool
	local    map[string]bool
	groups   map[string]*group
	policies map[string]*policyState
	// selectors look at this namespace alone; keys are the labels that they mention.
	selectors map[*selector]bool
	keys      map[string]int
}

// group is all pods that no rule in force can tell apart.
type group struct {
	name   string
	space  *space
	labels Labels      // those that selectors mention
	ports  []NamedPort // those that rules mention
	pods   map[*member]bool
	// selectors are those that match. A group that none matches has no identity.
	selectors map[*selector]bool
	identity  uint32
}

// selector is an interned Pods with the groups that it matches and the rules that use it.
type selector struct {
	Pods
	name   string
	refs   int
	groups map[*group]bool
	users  map[bucket]map[user]int
	// namers are the rules whose named ports are looked up at these pods.
	namers map[*ruleState]bool
}

// bucket is where on the switch a use of a selector stands.
type bucket struct {
	direction flows.Direction
	tier      flows.Tier
	priority  uint16
	kind      flows.ConditionKind
}

// user is a part of a rule that is met by each group of the selector, with a filter only by those of its pods
// whose port of that name is that number.
type user struct {
	flows.Part
	filter NamedPort
}

func (b bucket) condition(identity uint32) flows.Condition {
	return flows.Condition{Direction: b.direction, Tier: b.tier, Priority: b.priority, Kind: b.kind, Identity: identity}
}

func (ix *Index) space(name string) *space {
	s := ix.namespaces[name]
	if s == nil {
		s = &space{
			name: name, labels: Labels(metadataName + "=" + name), pods: map[*member]bool{}, local: map[string]bool{},
			groups: map[string]*group{}, policies: map[string]*policyState{}, selectors: map[*selector]bool{}, keys: map[string]int{},
		}
		ix.namespaces[name] = s
	}
	return s
}

// drop forgets a namespace of which nothing is left.
func (ix *Index) drop(s *space) {
	if !s.known && len(s.pods) == 0 && len(s.local) == 0 && len(s.policies) == 0 && len(s.selectors) == 0 {
		delete(ix.namespaces, s.name)
	}
}

// signature names the group that a pod belongs to.
func (ix *Index) signature(m *member) (name string, labels Labels, ports []NamedPort) {
	s := ix.space(m.Namespace)
	var kept []string
	for part := range strings.SplitSeq(string(m.Labels), ",") {
		if k, _, ok := strings.Cut(part, "="); ok && (s.keys[k] > 0 || ix.keys[k] > 0) {
			kept = append(kept, part)
		}
	}
	name = m.Namespace + ";" + strings.Join(kept, ",")
	for _, p := range m.Ports {
		if ix.names[p.Name] > 0 {
			ports = append(ports, p)
			name += fmt.Sprintf(";%s=%d/%d", p.Name, p.Protocol, p.Number)
		}
	}
	return name, Labels(strings.Join(kept, ",")), ports
}

// regroup puts a pod into the group that it belongs to.
func (ix *Index) regroup(m *member) {
	name, labels, ports := ix.signature(m)
	if m.group != nil && m.group.name == name {
		return
	}
	s := ix.space(m.Namespace)
	g := s.groups[name]
	if g == nil {
		g = &group{name: name, space: s, labels: labels, ports: ports, pods: map[*member]bool{}, selectors: map[*selector]bool{}}
		s.groups[name] = g
	}
	ix.leave(m)
	m.group = g
	g.pods[m] = true
	ix.dirty.peers[m.Key()] = true
	if _, here := ix.local[m.Key()]; here {
		ix.dirty.isolation[m.Key()] = true
	}
	if len(g.pods) == 1 {
		ix.rematch(g)
	}
	ix.soil(g)
}

// leave takes a pod out of its group.
func (ix *Index) leave(m *member) {
	g := m.group
	if g == nil {
		return
	}
	m.group = nil
	delete(g.pods, m)
	ix.soil(g)
	if len(g.pods) == 0 {
		for s := range g.selectors {
			ix.unmatch(s, g)
		}
		delete(g.space.groups, g.name)
	}
}

// soil marks what depends on which pods of this node are in a group.
func (ix *Index) soil(g *group) {
	for s := range g.selectors {
		for b := range s.users {
			if b.kind == flows.Subject {
				ix.dirty.conditions[b.condition(g.identity)] = true
			}
		}
	}
}

// rematch compares a group with all selectors that may match it.
func (ix *Index) rematch(g *group) {
	consider := func(s *selector) {
		now := ix.matches(s.Pods, g.space.name, g.labels)
		switch {
		case now && !g.selectors[s]:
			ix.match(s, g)
		case !now && g.selectors[s]:
			ix.unmatch(s, g)
		}
	}
	for s := range g.space.selectors {
		consider(s)
	}
	for s := range ix.wide {
		consider(s)
	}
}

func (ix *Index) match(s *selector, g *group) {
	g.selectors[s] = true
	s.groups[g] = true
	if g.identity == 0 {
		id, moved := ix.identities.get(g.name)
		ix.moved(moved)
		ix.identify(g, id)
	}
	ix.touched(s, g)
}

func (ix *Index) unmatch(s *selector, g *group) {
	ix.touched(s, g)
	delete(g.selectors, s)
	delete(s.groups, g)
	if len(g.selectors) == 0 {
		delete(ix.byIdentity, g.identity)
		g.identity = 0
		ix.moved(ix.identities.free(g.name))
	}
}

func (ix *Index) identify(g *group, id uint32) {
	g.identity = id
	ix.byIdentity[id] = g
}

// moved gives groups that had to change their number the new one.
func (ix *Index) moved(names []string) {
	var groups []*group
	for _, n := range names {
		space, _, _ := strings.Cut(n, ";")
		if g := ix.space(space).groups[n]; g != nil && g.identity != 0 {
			for s := range g.selectors {
				ix.touched(s, g)
			}
			if ix.byIdentity[g.identity] == g {
				delete(ix.byIdentity, g.identity)
			}
			groups = append(groups, g)
		}
	}
	for _, g := range groups {
		ix.identify(g, ix.identities.of[g.name])
		for s := range g.selectors {
			ix.touched(s, g)
		}
	}
}

// touched marks all that depends on a selector matching a group.
func (ix *Index) touched(s *selector, g *group) {
	for b := range s.users {
		ix.dirty.conditions[b.condition(g.identity)] = true
	}
	for r := range s.namers {
		if slices.ContainsFunc(g.ports, func(p NamedPort) bool { return slices.Contains(r.names, p.Name) }) {
			ix.dirty.rules[r] = true
		}
	}
	for m := range g.pods {
		ix.dirty.peers[m.Key()] = true
		if _, here := ix.local[m.Key()]; here {
			ix.dirty.isolation[m.Key()] = true
		}
	}
}

// acquire interns a selector.
func (ix *Index) acquire(p Pods) *selector {
	name := p.String()
	s := ix.selectors[name]
	if s != nil {
		s.refs++
		return s
	}
	s = &selector{Pods: p, name: name, refs: 1, groups: map[*group]bool{}, users: map[bucket]map[user]int{}, namers: map[*ruleState]bool{}}
	ix.selectors[name] = s
	if p.Namespace != "" {
		sp := ix.space(p.Namespace)
		sp.selectors[s] = true
		ix.mention(sp.keys, p.Pods, 1, sp)
		for _, g := range sp.groups {
			ix.consider(s, g)
		}
		return s
	}
	ix.wide[s] = true
	ix.mention(ix.keys, p.Pods, 1, nil)
	for _, sp := range ix.namespaces {
		if len(sp.groups) > 0 && p.Namespaces.Matches(sp.labels) {
			for _, g := range sp.groups {
				ix.consider(s, g)
			}
		}
	}
	return s
}

func (ix *Index) consider(s *selector, g *group) {
	if !g.selectors[s] && ix.matches(s.Pods, g.space.name, g.labels) {
		ix.match(s, g)
	}
}

func (ix *Index) release(s *selector) {
	if s.refs--; s.refs > 0 {
		return
	}
	for _, g := range slices.Collect(maps.Keys(s.groups)) {
		ix.unmatch(s, g)
	}
	delete(ix.selectors, s.name)
	if s.Namespace != "" {
		sp := ix.space(s.Namespace)
		delete(sp.selectors, s)
		ix.mention(sp.keys, s.Pods.Pods, -1, sp)
		ix.drop(sp)
		return
	}
	delete(ix.wide, s)
	ix.mention(ix.keys, s.Pods.Pods, -1, nil)
}

// mention counts the labels that selectors look at, and groups pods anew when that changes which matter.
func (ix *Index) mention(keys map[string]int, sel Selector, by int, where *space) {
	var fresh []string
	for _, r := range sel {
		if keys[r.Key] += by; keys[r.Key] == 0 {
			delete(keys, r.Key)
			fresh = append(fresh, r.Key)
		} else if by > 0 && keys[r.Key] == by {
			fresh = append(fresh, r.Key)
		}
	}
	if len(fresh) == 0 {
		return
	}
	again := func(m *member) {
		for _, k := range fresh {
			if _, has := m.Labels.Get(k); has {
				ix.regroup(m)
				return
			}
		}
	}
	if where != nil {
		for m := range where.pods {
			again(m)
		}
		return
	}
	for _, m := range ix.pods {
		again(m)
	}
}

// mentionPort is mention for the name of a port.
func (ix *Index) mentionPort(name string, by int) {
	before := ix.names[name]
	if ix.names[name] += by; ix.names[name] == 0 {
		delete(ix.names, name)
	}
	if (before == 0) == (ix.names[name] == 0) {
		return
	}
	for _, m := range ix.pods {
		if slices.ContainsFunc(m.Ports, func(p NamedPort) bool { return p.Name == name }) {
			ix.regroup(m)
		}
	}
}
