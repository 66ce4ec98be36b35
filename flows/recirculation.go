package flows

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Picked is the choice of a select group.
type Picked struct {
	Group  GroupID
	Bucket uint32
}

// nestedIndent is what ofproto/trace puts at least before each line that it nests.
const nestedIndent = 4

// beside tells whether a step with this indent is on the way of a packet above the MTU only. Steps are nested also by
// resubmit; what encloses them says which it is.
func (t *Trace) beside(indent int) bool {
	if indent < nestedIndent {
		return false
	}
	for i := len(t.Steps) - 1; i >= 0; i-- {
		s := t.Steps[i]
		if s.indent >= indent {
			continue
		}
		return s.aside || !strings.HasPrefix(s.last(), "resubmit(")
	}
	return true
}

// last is the action of the step that was told last, remarks left out.
func (s Step) last() string {
	for i := len(s.Actions) - 1; i >= 0; i-- {
		if !strings.HasPrefix(s.Actions[i], "->") {
			return s.Actions[i]
		}
	}
	return ""
}

// did takes one line of a step.
func (s *Step) did(indent int, line string) {
	s.Actions = append(s.Actions, line)
	if s.bucketIndent > 0 && indent <= s.bucketIndent {
		s.bucketIndent = 0
	}
	number, picked := strings.CutPrefix(line, "-> using bucket ")
	if picked {
		id, err := strconv.ParseUint(number, 10, 32)
		for i := len(s.Actions) - 1; i >= 0 && err == nil; i-- {
			if group, ok := strings.CutPrefix(s.Actions[i], "group:"); ok {
				if g, err := strconv.ParseUint(group, 10, 32); err == nil {
					s.Picks = append(s.Picks, Picked{GroupID(g), uint32(id)})
				}
				break
			}
		}
	}
	if s.bucketIndent > 0 {
		return
	}
	if strings.HasPrefix(line, "bucket ") {
		s.bucketIndent = indent
		return
	}
	s.own = append(s.own, line)
}

// stage takes the packet as it begins or is resumed; true for one above the MTU, whose way is told aside.
func (t *Trace) stage(text string) (large bool) {
	m := ParseMatch(text)
	if v, ok := m.Get("reg0"); ok && len(t.Stages) > 0 {
		n, err := strconv.ParseUint(v, 0, 32)
		if err == nil && n&tooBigBit != 0 {
			return true
		}
	}
	t.Stages = append(t.Stages, m)
	return false
}

// tooBigBit is that of reg0 which isTooBig matches.
const tooBigBit = 0x100

// final replaces "unchanged" after a recirculation by what it was before: the packet of that stage.
func (t *Trace) final(text string) string {
	if text == "unchanged" && len(t.Stages) > 1 {
		return t.Stages[len(t.Stages)-1].String()
	}
	return text
}

// End is the packet as it left the pipeline.
func (t Trace) End() Match {
	if t.Final == "unchanged" && len(t.Stages) > 0 {
		return t.Stages[len(t.Stages)-1]
	}
	return ParseMatch(t.Final)
}

// Translated is where the destination was translated to, if it was.
func (t Trace) Translated() (netip.AddrPort, bool) {
	for i := 1; i < len(t.Stages); i++ {
		was, now := destinationOf(t.Stages[0]), destinationOf(t.Stages[i])
		if now != was && now.IsValid() {
			return now, true
		}
	}
	return netip.AddrPort{}, false
}

// Hidden is the address that the source was translated to, if it was.
func (t Trace) Hidden() (netip.Addr, bool) {
	if len(t.Stages) == 0 {
		return netip.Addr{}, false
	}
	was := sourceOf(t.Stages[0])
	for _, s := range t.Stages[1:] {
		if now := sourceOf(s); now != was {
			return now, true
		}
	}
	return netip.Addr{}, false
}

func destinationOf(m Match) netip.AddrPort {
	port, _ := m.Get("tp_dst")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		n = 0 // ICMP has none
	}
	return netip.AddrPortFrom(addressOf(m, "nw_dst", "ipv6_dst"), uint16(n))
}

func sourceOf(m Match) netip.Addr { return addressOf(m, "nw_src", "ipv6_src") }

func addressOf(m Match, fields ...string) netip.Addr {
	for _, f := range fields {
		if v, ok := m.Get(f); ok {
			if a, err := netip.ParseAddr(v); err == nil {
				return a
			}
		}
	}
	return netip.Addr{}
}

// Choice is one endpoint that a group may choose.
type Choice struct {
	Endpoint netip.AddrPort
	// Share is its part of new connections, from 0 to 1.
	Share float64
}

// Choices are the endpoints of a group with their shares, in the order of their addresses; those of its parts included.
func (g *Group) Choices() []Choice {
	return merged(g.choices(1))
}

func (g *Group) choices(share float64) []Choice {
	total := 0
	for _, b := range g.Buckets {
		total += b.Weight
	}
	var out []Choice
	for _, b := range g.Buckets {
		mine := share * float64(b.Weight) / float64(max(total, 1))
		if part := g.part(b); part != nil {
			out = append(out, part.choices(mine)...)
			continue
		}
		if e, ok := b.Endpoint(); ok {
			out = append(out, Choice{e, mine})
		}
	}
	return out
}

// part is the group that a bucket leads to, nil for an endpoint.
func (g *Group) part(b Bucket) *Group {
	for _, p := range g.Parts {
		for _, a := range b.Actions {
			if a.Verb == "group" && a.Arg == strconv.FormatUint(uint64(p.ID), 10) {
				return p
			}
		}
	}
	return nil
}

// merged sums the shares of buckets that lead to one endpoint.
func merged(list []Choice) []Choice {
	slices.SortStableFunc(list, func(a, b Choice) int { return a.Endpoint.Compare(b.Endpoint) })
	var out []Choice
	for _, c := range list {
		if n := len(out); n > 0 && out[n-1].Endpoint == c.Endpoint {
			out[n-1].Share += c.Share
			continue
		}
		out = append(out, c)
	}
	return out
}

// Endpoint is where a bucket leads; false for one that leads to another group.
func (b Bucket) Endpoint() (netip.AddrPort, bool) {
	var addr netip.Addr
	var port uint64
	for _, a := range b.Actions {
		if m := natWords.FindStringSubmatch(a.Arg); a.Verb == "ct" && m != nil && m[1] == "dst" {
			e, err := netip.ParseAddrPort(m[2])
			return e, err == nil
		}
		value, field, _ := strings.Cut(a.Arg, "->")
		switch {
		case a.Verb != "set_field":
		case field == "reg3":
			addr = fromHex(value, 4)
		case field == "xxreg2":
			addr = fromHex(value, 16)
		case field == "reg4":
			port, _ = strconv.ParseUint(value, 0, 16) // as we wrote it
		}
	}
	return netip.AddrPortFrom(addr, uint16(port)), addr.IsValid()
}

// fromHex reads an address of so many bytes off a register.
func fromHex(value string, size int) netip.Addr {
	digits := strings.Repeat("0", 2*size) + strings.TrimPrefix(value, "0x")
	b, err := hex.DecodeString(digits[len(digits)-2*size:])
	a, ok := netip.AddrFromSlice(b)
	if err != nil || !ok {
		return netip.Addr{}
	}
	return a
}

// ReturnedBits are those of reg0 of which one is set where a packet rightly leaves by the port that it came from:
// for a Service, its masquerade undone, hairpin.
const ReturnedBits = 0x1000 | 0x2000 | 0x8000
