package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// State says how a live flow stands to what is wanted. It is empty for a flow that is as it should be.
type State string

const (
	// Alien is a flow that nobody here asks for.
	Alien State = "alien"
	// Altered is a flow of ours that says something else than was compiled.
	Altered State = "altered"
)

// Flow is one flow of the live table with the object behind it.
type Flow struct {
	Owner    flows.Owner `json:"owner"` // empty for a flow that is not ours
	State    State       `json:"state,omitempty"`
	Table    string      `json:"table"`
	Number   uint8       `json:"tableNumber"`
	Priority uint16      `json:"priority"`
	Cookie   string      `json:"cookie"`
	// Sentence says what the flow does, as it stands on the switch.
	Sentence string       `json:"sentence"`
	Drop     flows.Reason `json:"drop,omitempty"`
	Packets  uint64       `json:"packets"`
	Bytes    uint64       `json:"bytes"`
	Raw      string       `json:"raw"`
}

// Filter selects flows. The zero Filter selects all.
type Filter struct {
	// Owner is the whole name of an owner, or its beginning up to a slash.
	Owner string
	// Table is a table's name or number.
	Table string
	// Drops selects what drops.
	Drops bool
}

func (f Filter) takes(x Flow) bool {
	return (f.Owner == "" || string(x.Owner) == f.Owner || strings.HasPrefix(string(x.Owner), f.Owner+"/") ||
		strings.HasPrefix(string(x.Owner), f.Owner+":") ||
		// A condition is shared by rules, and its sentence names them.
		strings.HasPrefix(string(x.Owner), "clause/") && strings.Contains(x.Sentence, " "+f.Owner+"/")) &&
		(f.Table == "" || f.Table == x.Table || f.Table == fmt.Sprint(x.Number)) &&
		(!f.Drops || x.Drop != "" || strings.HasSuffix(x.Raw, "actions=drop"))
}

// Flows reads the table back and says what each flow does, sorted by owner, table and falling priority;
// flows that are not ours come first.
func (s *Subject) Flows(ctx context.Context, filter Filter) ([]Flow, error) {
	if filter.Table != "" && !slices.ContainsFunc(flows.Tables(), func(t flows.Table) bool {
		return t.String() == filter.Table || fmt.Sprint(uint8(t)) == filter.Table
	}) {
		return nil, bad("no table %q; they are %s", filter.Table, tableNames())
	}
	live, installed, err := s.live(ctx)
	if err != nil {
		return nil, err
	}
	out := []Flow{}
	s.View(func(d *flows.Desired, w *flows.World) {
		names := flows.NamesOf(w)
		for i, l := range live {
			x := explain(d, names, l)
			x.Packets, x.Bytes = installed[i].Packets, installed[i].Bytes
			if filter.takes(x) {
				out = append(out, x)
			}
		}
	})
	slices.SortStableFunc(out, func(a, b Flow) int {
		return cmp.Or(strings.Compare(string(a.Owner), string(b.Owner)), cmp.Compare(a.Number, b.Number), cmp.Compare(b.Priority, a.Priority),
			strings.Compare(a.Raw, b.Raw))
	})
	return out, nil
}

// explain says what a live flow does, whoever put it there.
func explain(d *flows.Desired, names *flows.Names, l flows.Live) Flow {
	x := Flow{
		Table: l.Table.String(), Number: uint8(l.Table), Priority: l.Priority, Cookie: fmt.Sprintf("%#x", l.Cookie), Raw: l.Line(),
	}
	said, err := l.Flow()
	wanted, ours := d.Flow(l.Cookie)
	switch {
	case l.Learned():
		x.Owner = "learned"
	case !ours:
		x.State = Alien
	case !d.Holds(l):
		x.Owner, x.State = wanted.Owner, Altered
	default:
		x.Owner, x.Drop = wanted.Owner, wanted.Drop
	}
	if err != nil {
		x.Sentence = fmt.Sprintf("cannot be read (%v): %s", err, x.Raw)
		return x
	}
	said.Drop = x.Drop
	x.Sentence = names.Explain(said)
	if x.State == Altered {
		x.Sentence += "; ALTERED, wanted: " + names.Explain(wanted)
	}
	return x
}

func tableNames() string {
	var out []string
	for _, t := range flows.Tables() {
		out = append(out, fmt.Sprintf("%s (%d)", t, uint8(t)))
	}
	return strings.Join(out, ", ")
}

// Drop is what was dropped for one reason on behalf of one object.
type Drop struct {
	Reason flows.Reason `json:"reason"`
	Owner  flows.Owner  `json:"owner"`
	// Sentence says what the reason means.
	Sentence string `json:"sentence"`
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
	// Last are packets that were dropped in the last ten seconds, the latest first, at most 5.
	Last []DroppedPacket `json:"last,omitempty"`
}

// dropKey is what drops are summed by.
type dropKey struct {
	Reason flows.Reason
	Owner  flows.Owner
}

// ownReason is the sentence of a drop for which no flow of the list stands.
func ownReason(r flows.Reason) string {
	switch r {
	case ToItself:
		return "Open vSwitch itself dropped it: it would leave by the port that it came from"
	case PortGone:
		return "Open vSwitch itself dropped it: the port that it would leave by is gone or down"
	}
	return r.Sentence()
}

// Drops sums the live counters of all flows that drop, by reason and owner, most packets first. A flow that
// drops and is not ours has the reason "alien".
func (s *Subject) Drops(ctx context.Context) ([]Drop, error) {
	list, err := s.Flows(ctx, Filter{Drops: true})
	if err != nil {
		return nil, err
	}
	sums := map[dropKey]*Drop{}
	for _, f := range list {
		k := dropKey{f.Drop, f.Owner}
		sentence := f.Drop.Sentence()
		if f.State != "" {
			k.Reason = flows.Reason(f.State)
			sentence = f.Sentence
		}
		d := sums[k]
		if d == nil {
			d = &Drop{Reason: k.Reason, Owner: k.Owner, Sentence: sentence}
			sums[k] = d
		}
		d.Packets += f.Packets
		d.Bytes += f.Bytes
	}
	last, err := s.lastDropped(ctx)
	if err != nil {
		return nil, err
	}
	for k, packets := range last {
		if sums[k] == nil { // by Open vSwitch itself, or by a flow that has just gone
			sums[k] = &Drop{Reason: k.Reason, Owner: k.Owner, Sentence: ownReason(k.Reason)}
		}
		sums[k].Last = packets
	}
	out := make([]Drop, 0, len(sums))
	for _, d := range sums {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Drop) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), strings.Compare(string(a.Reason), string(b.Reason)), strings.Compare(string(a.Owner), string(b.Owner)))
	})
	return out, nil
}
