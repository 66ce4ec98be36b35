package flows

import (
	"fmt"
	"slices"
	"strings"
)

// GroupID is the number of an OpenFlow group. It follows from the identity of the Service port whose
// endpoints it balances over, so that a restart of the agent finds its groups as they were.
type GroupID uint32

// maxGroupID is the largest number that OpenFlow has for a group (OFPG_MAX, OpenFlow 1.5 §7.2.3).
const maxGroupID GroupID = 0xffffff00

// Method is how a select group chooses among its buckets (ovs-ofctl(8), selection_method).
type Method string

const (
	// DPHash chooses by a hash that the datapath makes of the connection. The megaflows are as many as
	// there are parts, not as there are connections.
	DPHash Method = "dp_hash"
	// HashIPv4 and HashIPv6 choose by the address of the client and the round of affinity.
	HashIPv4 Method = "hash,fields(" + affinityRound + ",ip_src)"
	HashIPv6 Method = "hash,fields(" + affinityRound + ",ipv6_src)"
)

// Group is one select group and the object it exists for.
type Group struct {
	ID      GroupID
	Owner   Owner
	Method  Method
	Buckets []Bucket
	// Parts are the groups that buckets of this one lead to: they have to exist first, and go last.
	Parts []*Group
}

// Bucket is one choice of a group.
type Bucket struct {
	// ID is what a hash of a client or connection is compared by: as long as it stays, so do they.
	ID uint32
	// Weight is the share, relative to the sum of the weights.
	Weight  int
	Actions Actions
}

// String is the group as ovs-ofctl takes it and as Open vSwitch prints it.
func (g *Group) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "group_id=%d,type=select,selection_method=%s", g.ID, g.Method)
	for _, k := range g.Buckets {
		fmt.Fprintf(&b, ",bucket=bucket_id:%d,weight:%d,actions=%s", k.ID, k.Weight, k.Actions)
	}
	return b.String()
}

// command is the group as a line of a bundle takes it: ovs-ofctl wants the fields of a selection method in parentheses,
// and prints a single one without.
func (g *Group) command() string {
	s := g.String()
	if method, fields, ok := strings.Cut(string(g.Method), ",fields="); ok {
		s = strings.Replace(s, "selection_method="+string(g.Method), "selection_method="+method+",fields("+fields+")", 1)
	}
	return s
}

// hashPort chooses by the client's port: one megaflow for each connection. Without any field Open vSwitch 3.1 always
// chooses the same bucket.
func hashPort(protocol string) Method { return Method("hash,fields=" + protocol + "_src") }

// LiveGroup is one group as it was read back from the switch.
type LiveGroup struct {
	ID GroupID
	// Text is the group as Open vSwitch prints it.
	Text string
}

// ParseGroups reads the output of `ovs-ofctl dump-groups`. Lines that are no groups are skipped; one that
// has no number is an error naming its line.
func ParseGroups(dump string) ([]LiveGroup, error) {
	var out []LiveGroup
	n := 0
	for line := range strings.Lines(dump) {
		n++
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "group_id=")
		if !ok {
			continue
		}
		var id uint32
		number, _, _ := strings.Cut(rest, ",")
		if _, err := fmt.Sscanf(number, "%d", &id); err != nil {
			return nil, fmt.Errorf("line %d of the group dump: group_id %q is no number", n, number)
		}
		out = append(out, LiveGroup{GroupID(id), line})
	}
	return out, nil
}

// groupUse is a wanted group and how many wanted flows lead to it.
type groupUse struct {
	group *Group
	flows int
}

// groupTable is which groups the wanted flows lead to.
type groupTable struct {
	uses    map[GroupID]groupUse
	dialect map[GroupID]string // how this switch prints a group, where that is not how we write it
}

func newGroupTable() groupTable {
	return groupTable{uses: map[GroupID]groupUse{}, dialect: map[GroupID]string{}}
}

// hold and release count the flows that lead to a group; touched keeps what each group was before.
func (t groupTable) hold(g *Group, touched map[GroupID]*Group) {
	t.count(g, 1, touched)
}

func (t groupTable) release(g *Group, touched map[GroupID]*Group) {
	t.count(g, -1, touched)
}

func (t groupTable) count(g *Group, by int, touched map[GroupID]*Group) {
	if g == nil {
		return
	}
	u := t.uses[g.ID]
	if _, seen := touched[g.ID]; !seen {
		touched[g.ID] = u.group
	}
	u.flows += by
	if by > 0 {
		u.group = g
	}
	if u.flows == 0 {
		delete(t.uses, g.ID)
	} else {
		t.uses[g.ID] = u
	}
	for _, part := range g.Parts {
		t.count(part, by, touched)
	}
}

// changes says what the touched groups have become.
func (t groupTable) changes(touched map[GroupID]*Group) (add []*Group, remove []GroupID) {
	for id, before := range touched {
		u, wanted := t.uses[id]
		switch {
		case !wanted && before != nil:
			remove = append(remove, id)
			delete(t.dialect, id)
		case wanted && (before == nil || before.String() != u.group.String()):
			add = append(add, u.group)
			delete(t.dialect, id)
		}
	}
	sortGroups(add)
	slices.Sort(remove)
	return add, remove
}

// sortGroups puts groups before those that lead to them.
func sortGroups(list []*Group) {
	slices.SortFunc(list, func(a, b *Group) int {
		if (len(a.Parts) > 0) != (len(b.Parts) > 0) {
			if len(a.Parts) > 0 {
				return 1
			}
			return -1
		}
		return int(int64(a.ID) - int64(b.ID))
	})
}

// DiffGroups adds to a Delta what it takes for the switch to have the wanted groups and no others.
func (d *Desired) DiffGroups(live []LiveGroup, out *Delta) {
	good := map[GroupID]bool{}
	for _, l := range live {
		u, wanted := d.groups.uses[l.ID]
		switch {
		case !wanted:
			out.DeleteGroups = append(out.DeleteGroups, l.ID)
		case l.Text == u.group.String() || l.Text == d.groups.dialect[l.ID]:
			good[l.ID] = true
		}
	}
	for id, u := range d.groups.uses {
		if !good[id] {
			out.AddGroups = append(out.AddGroups, u.group)
		}
	}
	sortGroups(out.AddGroups)
	slices.Sort(out.DeleteGroups)
}

// LearnGroups is Learn for groups.
func (d *Desired) LearnGroups(live []LiveGroup) int {
	for _, l := range live {
		if u, wanted := d.groups.uses[l.ID]; wanted && l.Text != u.group.String() {
			d.groups.dialect[l.ID] = l.Text
		}
	}
	return len(d.groups.dialect)
}

// Group returns the wanted group with this number.
func (d *Desired) Group(id GroupID) (*Group, bool) {
	u, ok := d.groups.uses[id]
	return u.group, ok
}

// Groups returns all wanted groups by number.
func (d *Desired) Groups() []*Group {
	var out []*Group
	for _, u := range d.groups.uses {
		out = append(out, u.group)
	}
	slices.SortFunc(out, func(a, b *Group) int { return int(int64(a.ID) - int64(b.ID)) })
	return out
}
