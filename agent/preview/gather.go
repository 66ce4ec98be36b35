package preview

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Change is a verdict that would be another one, for all sources and destinations that share it.
type Change struct {
	// From and To are Sources and Destinations in words.
	From string `json:"from"`
	To   string `json:"to"`
	// Sources and Destinations are pods (NAMESPACE/NAME), nodes (node/NAME) and ranges outside of the cluster (CIDR,
	// or CIDR except CIDR CIDR). A pod and itself, and a node and its own pods, are always allowed, though both may
	// be listed.
	Sources      []string `json:"sources"`
	Destinations []string `json:"destinations"`
	// Ports are tcp/80, udp/8000-8100, sctp (all its ports) or other (protocols without ports, as ICMP).
	Ports []string `json:"ports"`
	// Family is IPv4 or IPv6, and empty for both.
	Family string  `json:"family,omitempty"`
	Before Verdict `json:"before"`
	After  Verdict `json:"after"`
}

// String is the change in one line.
func (c Change) String() string {
	what := strings.Join(c.Ports, ", ")
	if what == everything {
		what = "everything"
	}
	if c.Family != "" {
		what += " over " + c.Family
	}
	return fmt.Sprintf("%s → %s %s: %s → %s", c.From, c.To, what, c.Before, c.After)
}

const everything = "tcp, udp, sctp, other"

// effect is a Change without its ends.
type effect struct {
	ports, family string
	before, after Verdict
}

// effects are what happens to a pair: one for each pair of verdicts.
func effects(spans map[bool][]span) []effect {
	type verdicts struct{ before, after Verdict }
	ports := map[bool]map[verdicts][]string{true: {}, false: {}}
	for v4, list := range spans {
		for _, s := range list {
			k := verdicts{s.before, s.after}
			ports[v4][k] = append(ports[v4][k], s.String())
		}
	}
	var out []effect
	add := func(k verdicts, ports, family string) {
		if ports != "" {
			out = append(out, effect{ports, family, k.before, k.after})
		}
	}
	for k, list := range ports[true] {
		if slices.Equal(list, ports[false][k]) {
			add(k, strings.Join(list, ", "), "")
			delete(ports[false], k)
			continue
		}
		add(k, strings.Join(list, ", "), "IPv4")
	}
	for k, list := range ports[false] {
		add(k, strings.Join(list, ", "), "IPv6")
	}
	return out
}

func (s span) String() string {
	switch {
	case s.first == 0 && s.last == 65535:
		return s.protocol
	case s.first == s.last:
		return fmt.Sprintf("%s/%d", s.protocol, s.first)
	}
	return fmt.Sprintf("%s/%d-%d", s.protocol, s.first, s.last)
}

// gather puts together pairs that share a change: first sources, then destinations.
func gather(list []*end, found map[pair]map[bool][]span) []Change {
	sources := map[int]map[effect][]int{} // by destination
	for p, spans := range found {
		if sources[p.to.id] == nil {
			sources[p.to.id] = map[effect][]int{}
		}
		for _, e := range single(p, effects(spans)) {
			sources[p.to.id][e] = append(sources[p.to.id][e], p.from.id)
		}
	}
	type shared struct {
		effect
		sources string
	}
	destinations := map[shared][]int{}
	ends := map[string][]int{}
	for to, by := range sources {
		for e, from := range by {
			from = withExempt(list, list[to], from)
			key := fmt.Sprint(from)
			ends[key] = from
			destinations[shared{e, key}] = append(destinations[shared{e, key}], to)
		}
	}
	out := make([]Change, 0, len(destinations))
	for k, to := range destinations {
		slices.Sort(to)
		c := Change{Ports: strings.Split(k.ports, ", "), Family: k.family, Before: k.before, After: k.after}
		c.From, c.Sources = describe(list, ends[k.sources], "all other nodes")
		c.To, c.Destinations = describe(list, to, "all nodes")
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Change) int {
		if a.Before.Allowed != b.Before.Allowed {
			return map[bool]int{true: -1, false: 1}[a.Before.Allowed]
		}
		return cmp.Or(cmp.Compare(a.To, b.To), cmp.Compare(a.From, b.From), cmp.Compare(a.String(), b.String()))
	})
	return out
}

// single leaves the family away where an end has only one.
func single(p pair, effects []effect) []effect {
	if len(p.from.families())+len(p.to.families()) == 4 {
		return effects
	}
	for i := range effects {
		effects[i].family = ""
	}
	return effects
}

// families are those that an end has addresses of.
func (e *end) families() (out []bool) {
	for _, v4 := range []bool{true, false} {
		if e.addressOf(v4, 0).IsValid() {
			out = append(out, v4)
		}
	}
	return out
}

// withExempt adds to the sources of a destination what is always allowed, so that destinations with the same change
// read the same: itself beside all other pods of its namespace, its node beside all other nodes.
func withExempt(list []*end, to *end, from []int) []int {
	pods, siblings, nodes := true, false, false
	var exempt []int
	for _, e := range list {
		p := pair{e, to}
		in := slices.Contains(from, e.id)
		switch {
		case e.node && in:
			nodes = true
		case p.exempt():
			exempt = append(exempt, e.id)
		case len(e.pods) > 0 && len(to.pods) > 0 && e.pods[0].Namespace == to.pods[0].Namespace:
			pods, siblings = pods && in, siblings || in
		}
	}
	for _, id := range exempt {
		if list[id].node && nodes || !list[id].node && pods && siblings {
			from = append(from, id)
		}
	}
	slices.Sort(from)
	return from
}

// shownNames is how many pods, nodes or ranges a sentence names.
const shownNames = 3

// describe names ends, in words and one by one. allNodes is what all of them are called: as sources, a node and its
// own pods are always allowed.
func describe(list []*end, ids []int, allNodes string) (words string, names []string) {
	pods, total := map[string][]string{}, map[string]int{}
	var nodes, ranges, exact []string
	in := map[int]bool{}
	for _, id := range ids {
		in[id] = true
	}
	whole, count, outsides, seen := true, 0, 0, 0
	for _, e := range list {
		whole = whole && in[e.id]
		switch {
		case len(e.pods) > 0:
			ns := e.pods[0].Namespace
			total[ns] += len(e.pods)
			for _, p := range e.pods {
				if in[e.id] {
					pods[ns] = append(pods[ns], p.Name)
				}
			}
		case e.node:
			count++
			if in[e.id] {
				nodes = append(nodes, e.nodes[0])
			}
		default:
			outsides++
			if in[e.id] {
				seen++
				ranges, exact = append(ranges, e.rangeName()), append(exact, e.exactName())
			}
		}
	}
	slices.Sort(ranges)
	ranges = slices.Compact(ranges) // both families have an "anywhere else"
	var parts []string
	all, namespaces := true, slices.Sorted(maps.Keys(pods))
	for _, ns := range namespaces {
		slices.Sort(pods[ns])
		for _, p := range pods[ns] {
			names = append(names, ns+"/"+p)
		}
		if len(pods[ns]) == 1 {
			parts = append(parts, ns+"/"+pods[ns][0])
		} else if len(pods[ns]) == total[ns] {
			parts = append(parts, fmt.Sprintf("all %d pods of %s", total[ns], ns))
		} else {
			parts = append(parts, fmt.Sprintf("%d pods of %s (%s)", len(pods[ns]), ns, some(pods[ns])))
		}
		all = all && len(pods[ns]) == total[ns]
	}
	if all && len(namespaces) == len(total) && len(total) > 1 {
		parts = []string{"all pods"}
	} else if len(parts) > shownNames {
		parts = []string{fmt.Sprintf("pods of %d namespaces (%s)", len(parts), some(namespaces))}
	}
	for _, n := range nodes {
		names = append(names, "node/"+n)
	}
	switch {
	case len(nodes) > 1 && len(nodes) == count:
		parts = append(parts, allNodes)
	case len(nodes) == 1:
		parts = append(parts, "node "+nodes[0])
	case len(nodes) > 1:
		parts = append(parts, fmt.Sprintf("%d nodes (%s)", len(nodes), some(nodes)))
	}
	names = append(names, exact...)
	switch {
	case len(ranges) > 1 && seen == outsides:
		parts = append(parts, "all addresses outside the cluster")
	case len(ranges) > shownNames:
		parts = append(parts, fmt.Sprintf("%d ranges (%s)", len(ranges), some(ranges)))
	default:
		parts = append(parts, ranges...)
	}
	if whole {
		return "everybody", names
	}
	return strings.Join(parts, ", "), names
}

func some(list []string) string {
	if len(list) > shownNames {
		return strings.Join(list[:shownNames], ", ") + ", …"
	}
	return strings.Join(list, ", ")
}

func (e *end) rangeName() string {
	if e.anywhere {
		return "anywhere else"
	}
	return e.outside.String()
}

// exactName is rangeName with the ranges within it that are looked at by themselves.
func (e *end) exactName() string {
	if len(e.inner) == 0 {
		return e.outside.String()
	}
	var out []string
	for _, r := range e.inner {
		out = append(out, r.String())
	}
	return e.outside.String() + " except " + strings.Join(out, " ")
}
