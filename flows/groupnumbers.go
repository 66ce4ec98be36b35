package flows

import (
	"cmp"
	"fmt"
)

// slot is what a group is for: which endpoints of a port it balances over, and which part of them, from 1; 0 is the
// group that leads to the parts, or the only one.
type slot struct {
	owner Owner
	key   groupKey
	part  int
}

// compare orders slots by precedence where their numbers collide.
func (s slot) compare(o slot) int {
	first := func(a, b bool) int { // true before false
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(s.owner, o.owner), first(s.key.v4, o.key.v4), first(o.key.local, s.key.local), cmp.Compare(s.part, o.part))
}

// slots are the groups that a port needs, with their parts.
func (p *ServicePort) slots() (out []slot) {
	for _, k := range p.groupKeys() {
		for i := range 1 + partsOf(len(p.Endpoints)) {
			out = append(out, slot{p.Owner, k, i})
		}
	}
	return out
}

// numbering gives each group the number that its identity hashes to or, where others that take precedence have that, the
// next one that none of them has. So numbers depend on which groups there are, not on the order in which they came:
// this is linear probing with priorities (Blelloch and Golovin, Strongly History-Independent Hashing, 2007).
// A number is above 0 and below size.
type numbering struct {
	size GroupID
	at   map[GroupID]slot
	of   map[slot]GroupID
}

func newNumbering(size GroupID) *numbering {
	return &numbering{size: size, at: map[GroupID]slot{}, of: map[slot]GroupID{}}
}

func (n *numbering) home(s slot) GroupID {
	id := GroupID(hash32(fmt.Sprintf("%s %t %t %d", s.owner, s.key.v4, s.key.local, s.part)) % uint32(n.size))
	return max(id, 1)
}

func (n *numbering) next(id GroupID) GroupID {
	if id+1 == n.size {
		return 1
	}
	return id + 1
}

func (n *numbering) put(s slot, id GroupID) { n.at[id], n.of[s] = s, id }

// add numbers one more group. moved is told whose groups have got another number.
func (n *numbering) add(s slot, moved func(Owner)) {
	for id := n.home(s); ; id = n.next(id) {
		there, taken := n.at[id]
		if !taken {
			n.put(s, id)
			return
		}
		if s.compare(there) < 0 {
			n.put(s, id)
			moved(there.owner)
			s = there
		}
	}
}

// remove forgets a group. Of those that would have had its number but for it, the first by precedence gets it.
func (n *numbering) remove(s slot, moved func(Owner)) {
	hole := n.of[s]
	delete(n.of, s)
	delete(n.at, hole)
	for {
		var heir *slot
		for id := n.next(hole); ; id = n.next(id) {
			x, taken := n.at[id]
			if !taken {
				break
			}
			if n.passes(n.home(x), hole, id) && (heir == nil || x.compare(*heir) < 0) {
				heir = &x
			}
		}
		if heir == nil {
			return
		}
		id := n.of[*heir]
		n.put(*heir, hole)
		delete(n.at, id)
		moved(heir.owner)
		hole = id
	}
}

// passes is true when the way from home to id leads over hole.
func (n *numbering) passes(home, hole, id GroupID) bool {
	ahead := func(to GroupID) GroupID { // how far it is from home
		if to >= home {
			return to - home
		}
		return to + n.size - 1 - home
	}
	return ahead(hole) < ahead(id)
}
