package flows

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Without is the judge of the same World in which a rule or a whole policy does not exist: OWNER of a rule, or what
// PolicyOf makes of it.
func (j *Judge) Without(gone Owner) *Judge {
	k := *j
	k.rules = maps.Clone(j.rules)
	maps.DeleteFunc(k.rules, func(_ uint32, r *Rule) bool { return r.Owner == gone || PolicyOf(r.Owner) == string(gone) })
	name, isPolicy := strings.CutPrefix(string(gone), "networkpolicy/")
	k.isolate = func(a Attachment) *Isolation {
		i := j.isolate(a)
		if i == nil || !isPolicy {
			return i
		}
		c := *i
		not := func(list []string) []string {
			return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
		}
		c.Ingress, c.Egress = not(i.Ingress), not(i.Egress)
		return &c
	}
	return &k
}

// Isolating are the NetworkPolicies, as owners, that isolate the pod whose isolation decided.
func (j *Judge) Isolating(t Tuple, d Decision) []Owner {
	var out []Owner
	if i := j.subject(t, d.Direction); i != nil {
		list := i.Ingress
		if d.Direction == Egress {
			list = i.Egress
		}
		for _, p := range list {
			out = append(out, Owner("networkpolicy/"+p))
		}
	}
	return out
}

func (j *Judge) subject(t Tuple, d Direction) *Isolation {
	at := t.Destination
	if d == Egress {
		at = t.Source
	}
	if a, ok := j.pods[at]; ok {
		return j.isolate(a)
	}
	return nil
}

// Misses says of each rule of a NetworkPolicy for the pod that decided why it does not allow the packet, in the
// order of the rules: "shop/db-allow ingress 0: port 80 of tcp is not in {5432}".
func (j *Judge) Misses(t Tuple, d Decision, n *Names) []string {
	i := j.subject(t, d.Direction)
	if i == nil || i.Closed != "" {
		return nil
	}
	peer := t.Source
	if d.Direction == Egress {
		peer = t.Destination
	}
	table := j.tables[tableOf(d.Direction, NetworkTier)]
	words := map[Owner]string{}
	for _, c := range table.subjects[i.Identity] {
		for _, part := range c.Parts {
			r := j.rules[part.ID]
			if r == nil || r.Tier != NetworkTier {
				continue
			}
			name := strings.TrimPrefix(PolicyOf(r.Owner), "networkpolicy/") + strings.ReplaceAll(strings.TrimPrefix(string(r.Owner), PolicyOf(r.Owner)), "/", " ")
			why := j.missing(table, part, t, n, peer.String())
			if before, twice := words[r.Owner]; !twice || len(why) < len(before) {
				words[r.Owner] = name + ": " + why
			}
		}
	}
	var out []string
	for _, o := range slices.Sorted(maps.Keys(words)) {
		out = append(out, words[o])
	}
	return out
}

// missing says which conditions of a rule are not met.
func (j *Judge) missing(table *judged, subject Part, t Tuple, n *Names, peer string) string {
	type condition struct {
		met  bool
		port bool
		want []string
	}
	conditions := map[uint8]*condition{}
	visit := func(c *Clause, met bool, want string) {
		for _, p := range c.Parts {
			if p.ID != subject.ID {
				continue
			}
			if conditions[p.Number] == nil {
				conditions[p.Number] = &condition{}
			}
			x := conditions[p.Number]
			x.met, x.port = x.met || met, c.Kind == Port
			if !slices.Contains(x.want, want) {
				x.want = append(x.want, want)
			}
		}
	}
	at := t.Source
	if peer == t.Destination.String() {
		at = t.Destination
	}
	mine, known := j.peers[at]
	for id, list := range table.peers {
		for _, c := range list {
			visit(c, known && id == mine, n.policy.identity(fmt.Sprintf("%#x", id)))
		}
	}
	for _, c := range table.ranges {
		visit(c, c.Range.Contains(at), n.Address(c.Range.String()))
	}
	for _, c := range table.ports {
		visit(c, c.Protocol == t.Protocol && c.Port&c.Mask == t.Port&c.Mask, portWords(c))
	}
	var out []string
	for _, number := range slices.Sorted(maps.Keys(conditions)) {
		c := conditions[number]
		if c.met {
			continue
		}
		slices.Sort(c.want)
		want := c.want
		if len(want) > shownPods+2 {
			want = append(slices.Clone(want[:shownPods]), fmt.Sprintf("%d more", len(want)-shownPods))
		}
		if c.port {
			out = append(out, fmt.Sprintf("%s is not in {%s}", portOf(t), strings.Join(want, ", ")))
			continue
		}
		out = append(out, fmt.Sprintf("%s is not in {%s}", n.Address(peer), strings.Join(want, ", ")))
	}
	if len(out) == 0 {
		return "nobody is its peer now"
	}
	return strings.Join(out, ", and ")
}

// portWords is the port of a condition: "5432", "udp 53", "1024–2047".
func portWords(c *Clause) string {
	proto := strings.TrimSuffix(protocolWord(c.Protocol), " ")
	switch {
	case c.Mask == 0:
		return "any port of " + proto
	case c.Mask == 0xffff:
		return fmt.Sprintf("%s %d", proto, c.Port)
	}
	return fmt.Sprintf("%s %d–%d", proto, c.Port, c.Port|^c.Mask)
}

func portOf(t Tuple) string {
	if t.Protocol == 6 || t.Protocol == 17 || t.Protocol == 132 {
		return fmt.Sprintf("port %s %d", protocolWord(t.Protocol), t.Port)
	}
	return protocolWord(t.Protocol)
}

func protocolWord(n uint8) string {
	if w := map[uint8]string{1: "ICMP", 58: "ICMPv6", 6: "tcp", 17: "udp", 132: "sctp"}[n]; w != "" {
		return w
	}
	return fmt.Sprintf("protocol %d", n)
}
