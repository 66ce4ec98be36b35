package flows

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Explain says in one sentence what a flow does, for whom: the match before the colon, the actions
// after it. It understands every flow of the pipeline, compiled or read back from a switch; a field or
// action that no flow of ours has is shown as OVS writes it.
func (n *Names) Explain(f Flow) string {
	return n.ExplainMatch(f.Match) + ": " + n.ExplainActions(f)
}

// ExplainMatch says which packets a match selects.
func (n *Names) ExplainMatch(m Match) string {
	what := "packets"
	var words []string
	for _, f := range inReadingOrder(m) {
		if said, ok := n.policyMatchWords(f); ok {
			words = append(words, said)
			continue
		}
		switch f.Name {
		case "ip", "ipv6", "arp", "udp", "udp6", "tcp", "tcp6", "icmp", "icmp6", "sctp", "sctp6":
			what = protocolWords(f.Name)
		case "in_port":
			words = append(words, "from "+n.Port(f.Value))
		case "dl_src", "eth_src":
			words = append(words, "with source MAC "+f.Value)
		case "nw_src", "ipv6_src":
			words = append(words, "from "+n.Address(f.Value))
		case "nw_dst", "ipv6_dst":
			words = append(words, "to "+n.Address(f.Value))
		case "arp_spa":
			words = append(words, "whose sender is "+n.Address(f.Value))
		case "arp_tpa":
			words = append(words, "asking for "+n.Address(f.Value))
		case "arp_sha":
			words = append(words, "whose sender's MAC is "+f.Value)
		case "arp_op":
			words = append(words, map[string]string{"1": "that are requests", "2": "that are replies"}[f.Value])
		case "icmp_type", "icmpv6_type":
			words = append(words, "of type "+icmpWords(f.Value))
		case "tun_id":
			words = append(words, "with VNI "+decimal(f.Value))
		case "tun_src", "tun_ipv6_src":
			words = append(words, "sent by "+n.Address(f.Value))
		case "nw_ttl":
			words = append(words, "with TTL "+f.Value)
		case "tp_dst", "udp_dst":
			words = append(words, "to port "+f.Value)
		case "reg0":
			words = append(words, registerWords(f.Value))
		case "ct_state", "ct_mark", "reg3", "reg4", "reg8", "reg9", "reg10", "reg11":
			if w := n.serviceMatchWords(m, f); w != "" {
				words = append(words, w)
			}
		default:
			words = append(words, "with "+f.String())
		}
	}
	if len(words) == 0 {
		if len(m) == 0 {
			return "all other packets"
		}
		return "all " + what
	}
	return what + " " + strings.Join(words, ", ")
}

// inReadingOrder puts where a packet comes from before what it says. OVS prints fields in an order of
// its own; a flow that is read back has the same sentence.
func inReadingOrder(m Match) Match {
	order := []string{
		"in_port", "conj_id", "reg0", "reg1", "reg5", "reg6", "reg7", "reg12", "ct_state", "ct_mark", "tun_src", "tun_ipv6_src", "tun_id", "dl_src", "eth_src", "arp_op", "arp_sha", "arp_spa", "arp_tpa",
		"nw_src", "ipv6_src", "nw_dst", "ipv6_dst", "icmp_type", "icmpv6_type", "udp_dst", "tp_dst", "nw_ttl", "reg3", "reg8", "reg4",
	}
	rank := func(f Field) int {
		if i := slices.Index(order, f.Name); i >= 0 {
			return i
		}
		return len(order)
	}
	return slices.SortedStableFunc(slices.Values(m), func(a, b Field) int { return rank(a) - rank(b) })
}

// ExplainActions says what happens to the packets of a flow.
func (n *Names) ExplainActions(f Flow) string {
	if len(f.Actions) == 0 {
		if f.Drop != "" {
			return fmt.Sprintf("drop (%s): %s%s", f.Drop, f.Drop.Sentence(), n.isolatedBy(f))
		}
		return "drop"
	}
	var words []string
	for _, a := range f.Actions {
		if said, ok := n.policyActionWords(a); ok {
			words = append(words, said)
			continue
		}
		if w := n.actionWords(f.Table, a); w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

func (n *Names) actionWords(t Table, a Action) string {
	switch a.Verb {
	case "goto_table":
		if i, err := strconv.ParseUint(a.Arg, 10, 8); err == nil {
			return "continue at " + Table(i).String()
		}
		return "continue at " + a.Arg
	case "output":
		if a.Arg == whole("reg1") {
			return "send to the port chosen by route"
		}
		return "send to " + n.Port(a.Arg)
	case "IN_PORT":
		return "send back by the port of the request"
	case "dec_ttl":
		return "decrement the TTL"
	case "check_pkt_larger":
		return "mark those larger than " + strings.TrimPrefix(strings.SplitN(a.Arg, ")", 2)[0], "(") + " bytes (Ethernet header included)"
	case "move":
		return "" // only answers to ARP and ND move fields; the sentence is complete without
	case "set_field":
		value, field, _ := strings.Cut(a.Arg, "->")
		return n.setWords(t, value, field)
	case "ct", "group", "resubmit", "learn":
		return n.serviceActionWords(a)
	}
	return a.String()
}

func (n *Names) setWords(t Table, value, field string) string {
	if t == Sticky {
		return n.rememberedWords(value, field)
	}
	switch field {
	case "reg0":
		return map[string]string{
			fromPod: "mark as sent by a pod", fromTunnel: "mark as sent by a node", fromGateway: "mark as sent by the host",
			toPod: "", toTunnel: "", toGateway: "", nodeBits: "", // reg1 says it
			serviceBits: "mark as for a Service", returnBits: "mark as awaited by the host", hairpinBits: "mark to go back by the port it came from",
		}[value]
	case "reg1":
		if decimal(value) == fmt.Sprint(TunnelPort) {
			return "" // tun_dst says it
		}
		return "choose the port of " + n.Port(value)
	case "tun_dst", "tun_ipv6_dst":
		return "choose the tunnel to " + n.Address(value)
	case "tun_id":
		return "with VNI " + decimal(value)
	case "eth_dst":
		return "set the destination MAC " + value
	case "arp_op":
		return "turn into a reply that the address is at " + RouterMAC().String()
	case "icmpv6_type":
		return "turn into an advertisement"
	case "nd_tll":
		return "say that the address is at " + value
	case "eth_src":
		if value == net.HardwareAddr(RejectMAC()).String() {
			return "mark for the host to reject"
		}
		return ""
	case "arp_sha", "icmpv6_code", "nd_options_type", "nd_reserved":
		return "" // part of the rewriting that the other words tell
	}
	return "set " + field + " to " + value
}

func protocolWords(name string) string {
	switch name {
	case "ip":
		return "IPv4 packets"
	case "ipv6":
		return "IPv6 packets"
	case "arp":
		return "ARP packets"
	case "icmp6":
		return "ICMPv6 packets"
	}
	if base, v6 := strings.CutSuffix(name, "6"); v6 {
		return strings.ToUpper(base) + " packets over IPv6"
	}
	return strings.ToUpper(name) + " packets over IPv4"
}

func icmpWords(typ string) string {
	switch typ {
	case "133":
		return "router solicitation"
	case "134":
		return "router advertisement"
	case "135":
		return "neighbor solicitation"
	case "136":
		return "neighbor advertisement"
	case "137":
		return "redirect"
	}
	return typ
}

func registerWords(value string) string {
	switch value {
	case isFromPod, fromPod:
		return "sent by a pod"
	case isNotFromPod:
		return "not sent by a pod of this node"
	case fromTunnel:
		return "sent by a node"
	case isNotFromTunnel:
		return "not from the tunnel"
	case isFromGateway, fromGateway:
		return "sent by the host"
	case isNotFromGateway:
		return "not sent by the host"
	case isToGateway, toGateway:
		return "for the host"
	case toPod:
		return "for a pod"
	case toTunnel:
		return "for another node"
	case isTransit:
		return "from one node to another"
	case isLoop:
		return "from the host to the host"
	case isOverlayOnly:
		return "that this bridge routes by itself"
	case allowedBit:
		return "allowed by a rule"
	case isTooBig:
		return "larger than the MTU"
	case noService:
		return "for no Service"
	case toPodsAway:
		return "for pods of another node"
	case nodeFromPod:
		return "sent by a pod to another node itself"
	case servedPod:
		return "of a pod for a Service"
	case servedHost:
		return "of the host for a Service"
	case servedHostAway:
		return "of the host for a Service endpoint on another node"
	case servedHostToPod:
		return "of the host for a Service endpoint that is a pod on another node"
	case servedHostLoop:
		return "of the host for a Service endpoint on the host"
	case returnLoop:
		return "of the host that answer the host"
	case hairpinBits:
		return "that go back by the port they came from"
	case stickyBits:
		return "of a client that had an endpoint before"
	case stickyFromPod:
		return "of a pod that had an endpoint before"
	}
	return "with reg0=" + value
}

func decimal(hex string) string {
	if v, err := strconv.ParseUint(hex, 0, 64); err == nil {
		return fmt.Sprint(v)
	}
	return hex
}
