package flows

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Desired is what the bridge must hold, kept by owner so that one object can be compiled again without
// the others.
type Desired struct {
	owners  map[Owner][]Flow
	claims  map[Key][]Flow  // who wants this key, smallest owner first: it wins
	cookies map[uint64]Flow // the winners
	dialect map[uint64]Live // how this switch prints a flow, where that is not how we write it
	groups  groupTable
}

// NewDesired returns an empty set.
func NewDesired() *Desired {
	return &Desired{owners: map[Owner][]Flow{}, claims: map[Key][]Flow{}, cookies: map[uint64]Flow{}, dialect: map[uint64]Live{}, groups: newGroupTable()}
}

// Replace makes wanted[owner] the whole of what each of these owners wants, and returns what that changes
// on a switch that held what was wanted before.
//
// The error names each flow for which two owners ask with the same table, priority and match. The smaller
// owner name keeps it, whoever came first, and the other gets it once the first is gone: what the bridge
// holds depends on what is wanted, not on the order in which it was asked for. The Delta is good also
// when there is an error.
func (d *Desired) Replace(wanted map[Owner][]Flow) (Delta, error) {
	before := map[Key]Flow{} // the winner of every key that is touched, the zero Flow for none
	touch := func(k Key) {
		if _, seen := before[k]; seen {
			return
		}
		before[k] = Flow{}
		if c := d.claims[k]; len(c) > 0 {
			before[k] = c[0]
		}
	}
	owners := slices.Sorted(maps.Keys(wanted))
	for _, o := range owners {
		for _, f := range d.owners[o] {
			k := f.Key()
			touch(k)
			d.claims[k] = slices.DeleteFunc(d.claims[k], func(g Flow) bool { return g.Owner == o })
		}
		delete(d.owners, o)
	}
	var conflicts []error
	for _, o := range owners {
		for _, f := range wanted[o] {
			touch(f.Key())
			if err := d.claim(f); err != nil {
				conflicts = append(conflicts, err)
			}
		}
	}
	return d.settle(before), errors.Join(conflicts...)
}

// claim enters one wanted flow; it wins when no smaller owner wants the same key.
func (d *Desired) claim(f Flow) error {
	k := f.Key()
	claims := d.claims[k]
	if i := slices.IndexFunc(claims, func(g Flow) bool { return g.Owner == f.Owner }); i >= 0 {
		if claims[i].Spec() == f.Spec() {
			return nil
		}
		return fmt.Errorf("%s asks for both %q and %q; the first is used", f.Owner, claims[i].Spec(), f.Spec())
	}
	d.owners[f.Owner] = append(d.owners[f.Owner], f)
	claims = append(claims, f)
	slices.SortFunc(claims, func(a, b Flow) int { return strings.Compare(string(a.Owner), string(b.Owner)) })
	d.claims[k] = claims
	if len(claims) == 1 {
		return nil
	}
	return errors.New(conflict(k, claims))
}

func conflict(k Key, claims []Flow) string {
	return fmt.Sprintf("%s and %s both ask for table=%d,priority=%d,%s; %s gets it",
		claims[0].Owner, claims[1].Owner, k.Table, k.Priority, k.Match, claims[0].Owner)
}

// Conflicts names the flows that several owners ask for now, in a sentence each.
func (d *Desired) Conflicts() []string {
	var out []string
	for k, claims := range d.claims {
		if len(claims) > 1 {
			out = append(out, conflict(k, claims))
		}
	}
	slices.Sort(out)
	return out
}

// settle brings the cookies of the touched keys up to date and tells what that changes.
func (d *Desired) settle(before map[Key]Flow) Delta {
	touched := map[GroupID]*Group{}
	for _, old := range before {
		if old.Owner != "" {
			delete(d.cookies, old.Cookie)
			delete(d.dialect, old.Cookie)
			d.groups.release(old.Group, touched)
		}
	}
	var out Delta
	for _, k := range slices.SortedFunc(maps.Keys(before), Key.compare) {
		old, claims := before[k], d.claims[k]
		if len(claims) == 0 {
			delete(d.claims, k)
			if old.Owner != "" {
				out.Delete = append(out.Delete, old.Cookie)
			}
			continue
		}
		now := &claims[0]
		for d.cookies[now.Cookie].Owner != "" {
			now.Cookie++ // 32 bits collide once an owner has tens of thousands of flows
		}
		d.cookies[now.Cookie] = *now
		d.groups.hold(now.Group, touched)
		if now.Cookie != old.Cookie {
			out.Add = append(out.Add, *now)
		}
	}
	out.AddGroups, out.DeleteGroups = d.groups.changes(touched)
	out.sort()
	return out
}

func (k Key) compare(o Key) int {
	if k.Table != o.Table {
		return int(k.Table) - int(o.Table)
	}
	if k.Priority != o.Priority {
		return int(o.Priority) - int(k.Priority)
	}
	return strings.Compare(k.Match, o.Match)
}

// Flow returns the wanted flow with this cookie.
func (d *Desired) Flow(cookie uint64) (Flow, bool) {
	f, ok := d.cookies[cookie]
	return f, ok
}

// Len is the number of wanted flows.
func (d *Desired) Len() int { return len(d.cookies) }

// Of returns what one owner asked for, in the order in which it was compiled.
func (d *Desired) Of(owner Owner) []Flow { return slices.Clone(d.owners[owner]) }

// Owners lists every owner that has flows, sorted.
func (d *Desired) Owners() []Owner { return slices.Sorted(maps.Keys(d.owners)) }

// Flows returns all wanted flows, by table, falling priority and match.
func (d *Desired) Flows() []Flow {
	return slices.SortedFunc(maps.Values(d.cookies), func(a, b Flow) int { return a.Key().compare(b.Key()) })
}

// Live is one flow as it was read back from the switch.
type Live struct {
	Table    Table
	Priority uint16
	Cookie   uint64
	// Match and Actions are as OVS prints them.
	Match, Actions string
}

// Is tells whether what the switch holds is this flow: a cookie alone proves nothing, `ovs-ofctl
// mod-flows` changes what a flow does and leaves its cookie. Compile writes actions as OVS prints them,
// and the fields of a match so, too, but for their order.
func (l Live) Is(f Flow) bool {
	return l.Table == f.Table && l.Priority == f.Priority && l.Cookie == f.Cookie &&
		l.Actions == f.Actions.String() && sameFields(ParseMatch(l.Match), f.Match)
}

func sameFields(a, b Match) bool {
	if len(a) != len(b) {
		return false
	}
	for _, f := range a {
		if !slices.Contains(b, f) {
			return false
		}
	}
	return true
}

// Learned is true for a flow that a packet left on the switch: which endpoint a client had.
func (l Live) Learned() bool { return l.Table == Sticky && l.Cookie == stickyCookie }

// wanting leaves out what packets have learned: nobody asks for that, and nobody minds it.
func wanting(live []Live) []Live { return slices.DeleteFunc(slices.Clone(live), Live.Learned) }

// Diff compares what is wanted with what is there. A flow counts as there when its cookie stands once and
// the flow Is what was wanted; everything else is deleted by its full cookie. What packets have learned
// (table sticky) is left alone.
func (d *Desired) Diff(live []Live) Delta {
	live = wanting(live)
	seen := map[uint64]int{}
	for _, l := range live {
		seen[l.Cookie]++
	}
	var out Delta
	good := map[uint64]bool{}
	for _, l := range live {
		if seen[l.Cookie] == 1 && d.Holds(l) {
			good[l.Cookie] = true
			continue
		}
		if seen[l.Cookie] > 0 {
			out.Delete = append(out.Delete, l.Cookie)
			seen[l.Cookie] = 0
		}
	}
	for c, f := range d.cookies {
		if !good[c] {
			out.Add = append(out.Add, f)
		}
	}
	out.sort()
	return out
}

// Learn takes what a switch shows right after it accepted everything that was wanted, and keeps how it
// prints a flow where that is not how we write it: another version of OVS may have other words for the
// same. It returns the number of such flows.
func (d *Desired) Learn(live []Live) int {
	for _, l := range live {
		if f, wanted := d.cookies[l.Cookie]; wanted && f.Table == l.Table && f.Priority == l.Priority && !l.Is(f) {
			d.dialect[l.Cookie] = l
		}
	}
	return len(d.dialect)
}

// Delta is what has to happen on the switch.
type Delta struct {
	Add    []Flow
	Delete []uint64 // full cookies
	// AddGroups are new or changed, those that others lead to first.
	AddGroups    []*Group
	DeleteGroups []GroupID
}

// Empty is true when nothing has to happen.
func (d Delta) Empty() bool {
	return len(d.Add)+len(d.Delete)+len(d.AddGroups)+len(d.DeleteGroups) == 0
}

// Then is both deltas as one, what d holds first. No flow and no group may be in both.
func (d Delta) Then(next Delta) Delta {
	return Delta{
		Add: slices.Concat(d.Add, next.Add), Delete: slices.Concat(d.Delete, next.Delete),
		AddGroups: slices.Concat(d.AddGroups, next.AddGroups), DeleteGroups: slices.Concat(d.DeleteGroups, next.DeleteGroups),
	}
}

func (d *Delta) sort() {
	slices.SortFunc(d.Add, func(a, b Flow) int { return a.Key().compare(b.Key()) })
	slices.Sort(d.Delete)
}

// Bundle is the text of the delta for `ovs-ofctl bundle`: one atomic transaction. Additions stand
// before deletions, so that no packet finds a gap. A cookie that is both deleted and wanted (it stood at
// the wrong place) is deleted first. Groups come before the flows that lead to them, and go after.
func (d Delta) Bundle() string {
	wanted := map[uint64]bool{}
	for _, f := range d.Add {
		wanted[f.Cookie] = true
	}
	var first, adds, last strings.Builder
	for _, g := range d.AddGroups {
		fmt.Fprintf(&adds, "group add_or_mod %s\n", g.command())
	}
	for _, c := range d.Delete {
		at := &last
		if wanted[c] {
			at = &first
		}
		fmt.Fprintf(at, "flow delete cookie=%#x/-1\n", c)
	}
	for _, f := range d.Add {
		fmt.Fprintf(&adds, "flow add %s\n", f)
	}
	for _, id := range d.DeleteGroups {
		fmt.Fprintf(&last, "group delete group_id=%d\n", id)
	}
	return first.String() + adds.String() + last.String()
}
