package flows

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Flow is one OpenFlow flow and the object it exists for.
type Flow struct {
	Table    Table
	Priority uint16
	Match    Match
	Actions  Actions
	// Owner is the object on whose behalf the flow exists.
	Owner Owner
	// Drop is the reason, one stable word for counters, of a flow that drops. Empty for all others.
	Drop Reason
	// Group is what the flow's group action leads to; nil for a flow without one.
	Group *Group
	// Cookie is the flow's name on the switch; Compile fills it.
	Cookie uint64
}

// Field is one part of a match in ovs-ofctl syntax: a protocol keyword ("ip") without a value, or a
// field with one ("nw_dst=198.18.1.0/24").
type Field struct{ Name, Value string }

// Match is a conjunction of fields, in the order in which they are written.
type Match []Field

// Action is one OpenFlow action in ovs-ofctl syntax: Verb ("set_field", "goto_table", "drop") and Arg.
type Action struct{ Verb, Arg string }

// Actions are carried out in order. An empty list drops.
type Actions []Action

// Key is what can stand only once in a switch: two flows with the same Key overwrite each other.
type Key struct {
	Table    Table
	Priority uint16
	Match    string
}

// Key returns the identity of the flow as the switch sees it.
func (f Flow) Key() Key { return Key{f.Table, f.Priority, f.Match.String()} }

// Spec is the flow without its cookie, as ovs-ofctl would take it. It is what the lower half of
// the cookie hashes.
func (f Flow) Spec() string {
	return fmt.Sprintf("table=%d,priority=%d%s actions=%s", f.Table, f.Priority, prefixComma(f.Match.String()), f.Actions)
}

// String is the complete line for ovs-ofctl.
func (f Flow) String() string {
	return fmt.Sprintf("cookie=%#x,%s", f.Cookie, f.Spec())
}

func prefixComma(s string) string {
	if s == "" {
		return ""
	}
	return "," + s
}

// named returns the flow with the cookie that follows from its owner and its text.
func (f Flow) named() Flow {
	f.Cookie = uint64(f.Owner.hash())<<32 | uint64(hash32(f.Spec()))
	return f
}

// hash is the upper half of the cookies of all flows of this owner.
func (o Owner) hash() uint32 { return hash32(string(o)) }

// Owns tells by a cookie whether the flow is this owner's: the upper half is the hash of its name.
func (o Owner) Owns(cookie uint64) bool { return uint32(cookie>>32) == o.hash() }

// CookieMask selects the owner's half of a cookie: cookie=…/CookieMask finds all flows of one owner.
const CookieMask = 0xffffffff00000000

// CookiePrefix is the upper half, in place, of the cookies of all flows of this owner.
func (o Owner) CookiePrefix() uint64 { return uint64(o.hash()) << 32 }

func hash32(s string) uint32 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint32(sum[:4])
}

func (f Field) String() string {
	if f.Value == "" {
		return f.Name
	}
	return f.Name + "=" + f.Value
}

func (m Match) String() string { return join(m) }

// Get returns the value of a field and whether the match has it.
func (m Match) Get(name string) (string, bool) {
	for _, f := range m {
		if f.Name == name {
			return f.Value, true
		}
	}
	return "", false
}

func (a Action) String() string {
	switch {
	case a.Arg == "":
		return a.Verb
	case strings.HasPrefix(a.Arg, "("):
		return a.Verb + a.Arg
	}
	return a.Verb + ":" + a.Arg
}

func (a Actions) String() string {
	if len(a) == 0 {
		return "drop"
	}
	return join(a)
}

// Get returns the argument of the first action with this verb.
func (a Actions) Get(verb string) (string, bool) {
	for _, x := range a {
		if x.Verb == verb {
			return x.Arg, true
		}
	}
	return "", false
}

func join[T fmt.Stringer](parts []T) string {
	var b strings.Builder
	for i, p := range parts {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// The words a match is made of. Each returns the fields in the order OVS prints them.

func inPort(n uint32) Match          { return Match{{"in_port", fmt.Sprint(n)}} }
func arp() Match                     { return Match{{"arp", ""}} }
func ipv4() Match                    { return Match{{"ip", ""}} }
func ipv6() Match                    { return Match{{"ipv6", ""}} }
func field(name, value string) Match { return Match{{name, value}} }
func ethSrc(mac net.HardwareAddr) Match {
	return Match{{"dl_src", mac.String()}}
}

// icmp6 matches one ICMPv6 type (RFC 4443, RFC 4861).
func icmp6(typ int) Match { return Match{{"icmp6", ""}, {"icmp_type", fmt.Sprint(typ)}} }

// family matches every packet of the address's family.
func family(a netip.Addr) Match {
	if a.Is4() {
		return ipv4()
	}
	return ipv6()
}

func ipSrc(p netip.Prefix) Match { return ipField(p, "nw_src", "ipv6_src") }
func ipDst(p netip.Prefix) Match { return ipField(p, "nw_dst", "ipv6_dst") }

func ipField(p netip.Prefix, v4, v6 string) Match {
	name := v6
	if p.Addr().Is4() {
		name = v4
	}
	value := p.String()
	if p.IsSingleIP() {
		value = p.Addr().String()
	}
	return append(family(p.Addr()), Field{name, value})
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// match joins parts into one Match.
func match(parts ...Match) Match {
	var m Match
	for _, p := range parts {
		m = append(m, p...)
	}
	return m
}

// The verbs of actions, written as OVS prints them: what is read back is compared as text.

func set(value, field string) Action               { return Action{"set_field", value + "->" + field} }
func move(from, to string) Action                  { return Action{"move", whole(from) + "->" + whole(to)} }
func gotoTable(t Table) Action                     { return Action{"goto_table", fmt.Sprint(uint8(t))} }
func output(port uint32) Action                    { return Action{"output", fmt.Sprint(port)} }
func outputRegister(reg string) Action             { return Action{"output", whole(reg)} }
func decTTL() Action                               { return Action{"dec_ttl", ""} }
func backToSender() Action                         { return Action{"IN_PORT", ""} }
func setMAC(mac net.HardwareAddr, f string) Action { return set(mac.String(), f) }

// checkLarger sets bit 0 of the field when the packet, Ethernet header included, exceeds size bytes.
func checkLarger(size int, field string) Action {
	return Action{"check_pkt_larger", fmt.Sprintf("(%d)->%s", size, field)}
}

// whole names all bits of a field by its name in the Nicira extensible match, which is how OVS prints the
// fields of move and output (ovs-fields(7)).
func whole(field string) string {
	space := "NXM_NX_"
	switch field {
	case "eth_src", "eth_dst", "arp_spa", "arp_tpa":
		space = "NXM_OF_" // those of OpenFlow 1.0
	}
	return space + strings.ToUpper(field) + "[]"
}
