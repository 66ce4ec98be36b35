package flows

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kind of a Difference.
type Kind string

const (
	Missing   Kind = "missing"   // wanted, and not on the switch
	Foreign   Kind = "foreign"   // on the switch, and nobody here wants it
	Altered   Kind = "altered"   // on the switch under its cookie, and it says something else
	Duplicate Kind = "duplicate" // one cookie stands at several flows
)

// Difference is one flow of which the switch and the compiled set disagree.
type Difference struct {
	Kind Kind `json:"kind"`
	// Owner is the object that wants the flow; empty for a foreign one.
	Owner Owner `json:"owner,omitempty"`
	// Wanted and Live are both sides as lines of ovs-ofctl, empty where there is none.
	Wanted string `json:"wanted,omitempty"`
	Live   string `json:"live,omitempty"`
	// What names the parts that differ, in words.
	What string `json:"what"`
}

// Line is the live flow as ovs-ofctl would take it.
func (l Live) Line() string {
	return fmt.Sprintf("cookie=%#x,table=%d,priority=%d%s actions=%s", l.Cookie, l.Table, l.Priority, prefixComma(l.Match), l.Actions)
}

// Flow reads a live flow back into the model that flows are compiled to. The error names the part that is
// damaged. Owner and Drop are not on the switch; Desired.Flow has them by the cookie.
func (l Live) Flow() (Flow, error) {
	actions, err := ParseActions(l.Actions)
	if err != nil {
		return Flow{}, err
	}
	return Flow{Table: l.Table, Priority: l.Priority, Cookie: l.Cookie, Match: ParseMatch(l.Match), Actions: actions}, nil
}

// Holds tells whether a live flow is the wanted one, in our words or in those this switch was seen to use.
func (d *Desired) Holds(l Live) bool {
	f, wanted := d.cookies[l.Cookie]
	return wanted && (l.Is(f) || l == d.dialect[l.Cookie])
}

// Compare lists what the switch holds and nobody wants, what is wanted and not there, and what stands there
// altered, by table, falling priority and text. It is Diff for readers: nothing of it is to be carried out.
func (d *Desired) Compare(live []Live) []Difference {
	live = wanting(live)
	count := map[uint64]int{}
	for _, l := range live {
		count[l.Cookie]++
	}
	type placed struct {
		Key
		Difference
	}
	var out []placed
	for _, l := range live {
		f, wanted := d.cookies[l.Cookie]
		at := Key{l.Table, l.Priority, l.Match}
		switch {
		case !wanted:
			out = append(out, placed{at, Difference{Kind: Foreign, Live: l.Line(), What: "no object here asks for this flow"}})
		case d.Holds(l):
		case count[l.Cookie] > 1:
			out = append(out, placed{at, Difference{Kind: Duplicate, Owner: f.Owner, Wanted: f.String(), Live: l.Line(),
				What: "a second flow with the cookie of this one"}})
		default:
			out = append(out, placed{at, Difference{Kind: Altered, Owner: f.Owner, Wanted: f.String(), Live: l.Line(), What: l.against(f)}})
		}
	}
	for c, f := range d.cookies {
		if count[c] == 0 {
			out = append(out, placed{f.Key(), Difference{Kind: Missing, Owner: f.Owner, Wanted: f.String(), What: "the flow is not on the switch"}})
		}
	}
	slices.SortFunc(out, func(a, b placed) int {
		return cmp.Or(a.Key.compare(b.Key), strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Live+a.Wanted, b.Live+b.Wanted))
	})
	list := make([]Difference, len(out))
	for i, p := range out {
		list[i] = p.Difference
	}
	return list
}

// against says in which parts a live flow is not the wanted one.
func (l Live) against(f Flow) string {
	var parts []string
	add := func(what, live, wanted string) {
		if live != wanted {
			parts = append(parts, fmt.Sprintf("%s is %s, wanted %s", what, live, wanted))
		}
	}
	add("table", l.Table.String(), f.Table.String())
	add("priority", fmt.Sprint(l.Priority), fmt.Sprint(f.Priority))
	if !sameFields(ParseMatch(l.Match), f.Match) {
		parts = append(parts, fmt.Sprintf("match is %q, wanted %q", l.Match, f.Match))
	}
	if wanted := f.Actions.String(); l.Actions != wanted {
		parts = append(parts, fmt.Sprintf("actions are %q, wanted %q", l.Actions, wanted))
	}
	return strings.Join(parts, "; ")
}

// CompareGroups is Compare for groups, by number.
func (d *Desired) CompareGroups(live []LiveGroup) []Difference {
	var out []Difference
	seen := map[GroupID]bool{}
	for _, l := range live {
		seen[l.ID] = true
		switch u, wanted := d.groups.uses[l.ID]; {
		case !wanted:
			out = append(out, Difference{Kind: Foreign, Live: l.Text, What: "no object here asks for this group"})
		case l.Text != u.group.String() && l.Text != d.groups.dialect[l.ID]:
			out = append(out, Difference{Kind: Altered, Owner: u.group.Owner, Wanted: u.group.String(), Live: l.Text, What: u.group.against(l)})
		}
	}
	for _, g := range d.Groups() {
		if !seen[g.ID] {
			out = append(out, Difference{Kind: Missing, Owner: g.Owner, Wanted: g.String(), What: fmt.Sprintf("group %d is not on the switch", g.ID)})
		}
	}
	slices.SortStableFunc(out, func(a, b Difference) int {
		return cmp.Or(strings.Compare(string(a.Owner), string(b.Owner)), strings.Compare(cmp.Or(a.Wanted, a.Live), cmp.Or(b.Wanted, b.Live)))
	})
	return out
}

// against says in which buckets a live group is not the wanted one.
func (g *Group) against(l LiveGroup) string {
	head := func(text string) string { h, _, _ := strings.Cut(text, ",bucket="); return h }
	buckets := func(text string) []string { return strings.Split(text, ",bucket=")[1:] }
	var parts []string
	if h := head(g.String()); head(l.Text) != h {
		parts = append(parts, fmt.Sprintf("it is %q, wanted %q", head(l.Text), h))
	}
	wanted, live := buckets(g.String()), buckets(l.Text)
	for _, b := range wanted {
		if !slices.Contains(live, b) {
			parts = append(parts, "the bucket "+b+" is missing")
		}
	}
	for _, b := range live {
		if !slices.Contains(wanted, b) {
			parts = append(parts, "the bucket "+b+" should not be there")
		}
	}
	if len(parts) == 0 {
		return "the order of its buckets is another"
	}
	return strings.Join(parts, "; ")
}
