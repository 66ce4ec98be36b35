package preview

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/twill-net/twill/agent/policy"
)

// Result is what would change.
type Result struct {
	Changes []Change `json:"changes"`
	// Pods, Nodes and Ranges were looked at, as sources and as destinations; so were all ports.
	Pods   int      `json:"pods"`
	Nodes  int      `json:"nodes"`
	Ranges int      `json:"ranges"`
	Notes  []string `json:"notes,omitempty"`
}

// Closes and Opens tell whether something that passes now would be dropped, and the other way round.
func (r *Result) Closes() bool {
	return slices.ContainsFunc(r.Changes, func(c Change) bool { return c.Before.Allowed })
}
func (r *Result) Opens() bool {
	return slices.ContainsFunc(r.Changes, func(c Change) bool { return c.After.Allowed })
}

// pair is a source and a destination.
type pair struct{ from, to *end }

// comparison is the two sides with some pods judged.
type comparison struct{ before, after *side }

// Preview tells what a request would change. The error names what of the request cannot be used, or says that
// the cluster is too large to be looked at within ctx.
func Preview(ctx context.Context, o Objects, r Request) (*Result, error) {
	c, err := r.read()
	if err != nil {
		return nil, err
	}
	before, after, touched, err := c.versions(o)
	if err != nil {
		return nil, err
	}
	x := examination{objects: o, before: before, after: after}
	without := x.ends()
	out := &Result{Changes: []Change{}, Pods: len(o.Pods) - without, Nodes: len(o.Nodes)}
	if without > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("pods without an address are left out: %d", without))
	}
	if c.ignored > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("objects that are neither NetworkPolicy nor ClusterNetworkPolicy are left out: %d", c.ignored))
	}
	if len(touched) == 0 {
		out.Notes = append(out.Notes, "the policies are already as they would be")
		return out, nil
	}
	subjects, notes, err := x.selected(ctx, touched)
	if err != nil {
		return nil, err
	}
	out.Notes = append(out.Notes, notes...)
	found, err := x.compare(ctx, subjects)
	if err != nil {
		return nil, err
	}
	for _, e := range x.list {
		if !e.node && len(e.pods) == 0 {
			out.Ranges++
		}
	}
	out.Changes = gather(x.list, found)
	return out, nil
}

// examination is one preview on its way.
type examination struct {
	objects       Objects
	before, after map[string]*policy.Policy
	list          []*end
}

// selected finds the ends that a touched policy selects, and names policies that select nobody.
func (x *examination) selected(ctx context.Context, touched map[string]bool) (subjects map[int]bool, notes []string, err error) {
	everybody := map[int]bool{}
	for _, e := range x.list {
		everybody[e.id] = true
	}
	subjects = map[int]bool{}
	for _, owner := range slices.Sorted(maps.Keys(touched)) {
		if err := ctx.Err(); err != nil {
			return nil, nil, fmt.Errorf("%d policies are too many to be previewed in time: do it in parts: %w", len(touched), err)
		}
		hit := false
		for _, side := range []map[string]*policy.Policy{x.before, x.after} {
			if side[owner] == nil {
				continue
			}
			w := x.resolve(map[string]*policy.Policy{owner: side[owner]}, everybody)
			for _, e := range x.list {
				if len(e.pods) == 0 {
					continue
				}
				if _, ok := w.Policy.Pods.Get(e.shown[0].Key()); ok {
					subjects[e.id], hit = true, true
				}
			}
		}
		if !hit {
			notes = append(notes, owner+" selects no pod that there is now")
		}
	}
	return subjects, notes, nil
}

// compare judges every pair of ends one of which is a subject, first by the subject's policies alone.
func (x *examination) compare(ctx context.Context, subjects map[int]bool) (map[pair]map[bool][]span, error) {
	found := map[pair]map[bool][]span{}
	first := comparison{x.side(x.before, subjects), x.side(x.after, subjects)}
	x.outsides(first)
	both := map[int]bool{}
	var candidates []pair
	for _, from := range x.list {
		for _, to := range x.list {
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("there are too many groups of pods, nodes and ranges (%d) to judge all pairs in time: preview fewer policies at once: %w", len(x.list), err)
			}
			if !subjects[from.id] && !subjects[to.id] {
				continue
			}
			if p := (pair{from, to}); len(first.judge(p)) > 0 {
				candidates = append(candidates, p)
				both[from.id], both[to.id] = true, true
			}
		}
	}
	if len(candidates) == 0 {
		return found, nil
	}
	second := comparison{x.side(x.before, both), x.side(x.after, both)}
	for _, p := range candidates {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%d pairs of groups may change, too many to be judged in time: preview fewer policies at once: %w", len(candidates), err)
		}
		if spans := second.judge(p); len(spans) > 0 {
			found[p] = spans
		}
	}
	return found, nil
}

// exempt is true for a pair that no policy has a say in: a pod and itself, a node and its own pods.
func (p pair) exempt() bool {
	return len(p.from.pods) == 1 && p.from == p.to || p.from.node && len(p.to.nodes) == 1 && p.to.nodes[0] == p.from.nodes[0]
}

// judge compares the sides for a pair, by family (true is IPv4).
func (c comparison) judge(p pair) map[bool][]span {
	if p.exempt() {
		return nil
	}
	other := 0
	var pods []string
	if len(p.to.pods) > 0 {
		if p.from == p.to || p.from.node && p.to.nodes[0] == p.from.nodes[0] {
			other = 1
		}
		pods = append(pods, p.to.shown[other].Key())
	}
	if len(p.from.pods) > 0 {
		pods = append(pods, p.from.shown[0].Key())
	}
	out := map[bool][]span{}
	for _, v4 := range []bool{true, false} {
		from, to := p.from.addressOf(v4, 0), p.to.addressOf(v4, other)
		if !from.IsValid() || !to.IsValid() {
			continue
		}
		if spans := judged(c.before, c.after, from, to, pods); len(spans) > 0 {
			out[v4] = spans
		}
	}
	return out
}
