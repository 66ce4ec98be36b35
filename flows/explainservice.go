package flows

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// serviceMatchWords says what a match on conntrack or on the registers of an endpoint selects.
func (n *Names) serviceMatchWords(m Match, f Field) string {
	switch f.Name {
	case "ct_mark":
		switch f.Value {
		case markHost:
			return "of a client of the host"
		case markHairpin:
			return "of a pod to itself"
		}
	case "reg3":
		if v, err := strconv.ParseUint(f.Value, 0, 32); err == nil {
			a := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			return "whose endpoint is " + n.Address(a.String())
		}
	case "reg8":
		if a, ok := endpointOfMatch(m); ok {
			return "whose endpoint is " + n.Address(a.String())
		}
	case "reg4":
		return "at port " + decimal(f.Value)
	case "reg9", "reg10", "reg11":
		return "" // reg8 says it
	}
	return "with " + f.String()
}

// rememberedWords says what a learned flow knows of a client.
func (n *Names) rememberedWords(value, field string) string {
	switch field {
	case "reg3":
		return "the client had the endpoint " + n.Address(fromHex(value, 4).String())
	case "xxreg2":
		return "the client had the endpoint " + n.Address(fromHex(value, 16).String())
	case "reg4":
		return "at port " + decimal(value)
	case affinityRound:
		return "nothing is remembered, choose as in round " + decimal(value)
	case "reg0":
		if value == stickyBits {
			return "" // the other words say it
		}
	}
	return "set " + field + " to " + value
}

// endpointOfMatch reads the IPv6 endpoint that four registers hold.
func endpointOfMatch(m Match) (netip.Addr, bool) {
	var b [16]byte
	for i, r := range []string{"reg8", "reg9", "reg10", "reg11"} {
		text, ok := m.Get(r)
		v, err := strconv.ParseUint(text, 0, 32)
		if !ok || err != nil {
			return netip.Addr{}, false
		}
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
	}
	return netip.AddrFrom16(b), true
}

var (
	natWords   = regexp.MustCompile(`nat\((src|dst)=([^)]*)\)`)
	tableWords = regexp.MustCompile(`table=(\d+)`)
	timeWords  = regexp.MustCompile(`hard_timeout=(\d+)`)
)

// serviceActionWords says what the actions of Services do.
func (n *Names) serviceActionWords(a Action) string {
	next := ""
	if m := tableWords.FindStringSubmatch(a.Arg); m != nil {
		if t, err := strconv.ParseUint(m[1], 10, 8); err == nil {
			next = Table(t).String()
		}
	}
	switch a.Verb {
	case "group":
		return "choose an endpoint by group " + a.Arg
	case "resubmit":
		if t, err := strconv.ParseUint(strings.Trim(a.Arg, "(,)"), 10, 8); err == nil {
			if Table(t) == Sticky {
				return "look up the endpoint that the client had"
			}
			return "visit " + Table(t).String()
		}
	case "learn":
		if m := timeWords.FindStringSubmatch(a.Arg); m != nil {
			return fmt.Sprintf("remember the endpoint of this client for %s seconds", m[1])
		}
	case "ct":
		return n.conntrackWords(a.Arg, next)
	}
	return a.String()
}

func (n *Names) conntrackWords(arg, next string) string {
	switch m := natWords.FindStringSubmatch(arg); {
	case m != nil && m[1] == "dst":
		return "translate the destination to " + n.addressAndPort(m[2]) + ", continue at " + next
	case m != nil:
		return "translate the source to " + n.Address(m[2]) + ", continue at " + next
	case strings.Contains(arg, "commit") && !strings.Contains(arg, "nat"):
		return "track, continue at " + next
	case strings.Contains(arg, "commit"):
		return "track, with another source port if a Service has that one in use, continue at " + next
	case strings.Contains(arg, fmt.Sprintf("zone=%d,", ZoneMasquerade)):
		return "undo the masquerade, continue at " + next
	case !strings.Contains(arg, "nat"):
		return "look the connection up, continue at " + next
	}
	return "track and translate as the connection was, continue at " + next
}

// addressAndPort names an endpoint.
func (n *Names) addressAndPort(text string) string {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return n.Address(text)
	}
	return n.Address(ap.Addr().String()) + " port " + fmt.Sprint(ap.Port())
}

// ExplainGroup says in one sentence for each bucket where it leads, with its share of new connections.
func (n *Names) ExplainGroup(g *Group) []string {
	total := 0
	for _, b := range g.Buckets {
		total += b.Weight
	}
	var out []string
	for _, b := range g.Buckets {
		var words []string
		for _, a := range b.Actions {
			if w := n.bucketWords(a); w != "" {
				words = append(words, w)
			}
		}
		out = append(out, fmt.Sprintf("%.1f %%: %s", 100*float64(b.Weight)/float64(max(total, 1)), strings.Join(words, ", ")))
	}
	return out
}

// bucketWords is actionWords, and what buckets alone have.
func (n *Names) bucketWords(a Action) string {
	value, field, _ := strings.Cut(a.Arg, "->")
	switch {
	case a.Verb != "set_field":
	case field == "reg3":
		return n.serviceMatchWords(nil, Field{"reg3", value})
	case field == "reg4":
		return "at port " + decimal(value)
	case field == "xxreg2":
		return "whose endpoint is " + n.Address(fromHex(value, 16).String())
	}
	return n.actionWords(Service, a)
}
