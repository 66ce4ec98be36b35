package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"
)

// NFTServices is what the host does for Services, by rules whose number does not depend on theirs:
//
//	nodeport-*   what is for a node port at one of the node's own addresses gets the address by which the bridge
//	             knows node ports; the port stays. So does what is for a Service that has an address of this host, by that
//	             address, protocol and port alone: all other ports are the host's
//	prerouting   what the bridge hands back because nobody serves it is rejected at once
//	output       what the node itself sends to nobody over IPv4, TCP aside, is rejected here: the kernel makes no ICMP
//	             error in the name of an address of a Service to one of its own
type NFTServices struct {
	// NodePorts are the ports of each family that are served.
	NodePorts []NodePort
	// NodePortAddresses are the own addresses at which they are; empty means all but loopback.
	NodePortAddresses []netip.Prefix
	// To is what those addresses are translated to, one of each family.
	To []netip.Addr
	// Own are Services at addresses of this host.
	Own []OwnService
	// Unserved are the IPv4 addresses and ports of Services that have no endpoint.
	Unserved []Unserved
	// RejectMAC is the source of what is to be rejected.
	RejectMAC net.HardwareAddr
}

// Unserved is an address and port that nobody serves.
type Unserved struct {
	Protocol string
	At       netip.AddrPort
}

// OwnService is an address of this host and a port of it that the bridge serves, by another address.
type OwnService struct {
	Protocol string
	At       netip.AddrPort
	To       netip.Addr
}

func ownMap(v4 bool) string {
	if v4 {
		return "own-services-ipv4"
	}
	return "own-services-ipv6"
}

const unservedSet = "unserved-ipv4"

// NodePort is one port of a family.
type NodePort struct {
	IPv4 bool
	// Protocol is tcp, udp or sctp.
	Protocol string
	Port     uint16
}

func nodePortSet(v4 bool) string {
	if v4 {
		return "node-ports-ipv4"
	}
	return "node-ports-ipv6"
}

func (s *NFTServices) rules(gateway string) (all []nftRule) {
	for _, chain := range []string{"nodeport-prerouting", "nodeport-output"} {
		for _, to := range s.To {
			f := nftFamilyOf(to)
			all = append(all, nftRule{chain, fmt.Sprintf("dnat %s to %[1]s daddr . meta l4proto . th dport map @%s", f.protocol, ownMap(to.Is4())),
				"a Service that has an address of this host"})
			all = append(all, nftRule{chain, fmt.Sprintf("%s fib daddr type local meta l4proto . th dport @%s dnat %s to %s",
				s.daddr(f, to), nodePortSet(to.Is4()), f.protocol, to), "node ports are served by the bridge"})
		}
	}
	all = append(all, nftRule{"output", "ip daddr . meta l4proto . th dport @" + unservedSet + " reject", "a Service without endpoints"})
	from := fmt.Sprintf("iifname %q ether saddr %s ", gateway, s.RejectMAC)
	return append(all,
		nftRule{"prerouting", from + "meta l4proto tcp reject with tcp reset", "nobody serves that address and port"},
		nftRule{"prerouting", from + "reject with icmpx port-unreachable", "nobody serves that address and port"})
}

// daddr selects the addresses of a family at which node ports are served.
func (s *NFTServices) daddr(f nftFamily, of netip.Addr) string {
	list := slices.DeleteFunc(slices.Clone(s.NodePortAddresses), func(p netip.Prefix) bool { return p.Addr().Is4() != of.Is4() })
	if len(list) > 0 {
		text := ""
		for _, p := range list {
			text += ", " + p.String()
		}
		return fmt.Sprintf("%s daddr { %s }", f.protocol, text[2:])
	}
	if of.Is4() {
		return "ip daddr != 127.0.0.0/8"
	}
	return "ip6 daddr != ::1"
}

func (s *NFTServices) declarations() (all []*knftables.Set) {
	if s == nil {
		return nil
	}
	all = append(all, &knftables.Set{Name: unservedSet, Type: "ipv4_addr . inet_proto . inet_service"})
	for _, v4 := range []bool{true, false} {
		all = append(all, &knftables.Set{Name: nodePortSet(v4), Type: "inet_proto . inet_service"})
	}
	return all
}

// maps are the names of those sets that lead to something, with their types.
func (s *NFTServices) maps() map[string]string {
	if s == nil {
		return nil
	}
	return map[string]string{
		ownMap(true):  "ipv4_addr . inet_proto . inet_service : ipv4_addr",
		ownMap(false): "ipv6_addr . inet_proto . inet_service : ipv6_addr",
	}
}

func (s *NFTServices) sets() map[string][]string {
	sets := map[string][]string{}
	if s == nil {
		return sets
	}
	for _, v4 := range []bool{true, false} {
		sets[nodePortSet(v4)], sets[ownMap(v4)] = nil, nil
	}
	for _, o := range s.Own {
		name := ownMap(o.At.Addr().Is4())
		sets[name] = append(sets[name], fmt.Sprintf("%s . %s . %d : %s", o.At.Addr(), o.Protocol, o.At.Port(), o.To))
	}
	sets[unservedSet] = nil
	for _, u := range s.Unserved {
		sets[unservedSet] = append(sets[unservedSet], fmt.Sprintf("%s . %s . %d", u.At.Addr(), u.Protocol, u.At.Port()))
	}
	for _, p := range s.NodePorts {
		name := nodePortSet(p.IPv4)
		sets[name] = append(sets[name], fmt.Sprintf("%s . %d", p.Protocol, p.Port))
	}
	return sets
}

// protocolNamed gives the protocol before a port its name: without /etc/protocols, as in the image, nft(8) prints the
// number that IANA assigned.
func protocolNamed(key []string) []string {
	if len(key) < 2 {
		return key
	}
	key = slices.Clone(key)
	at := &key[len(key)-2]
	switch *at {
	case "6":
		*at = "tcp"
	case "17":
		*at = "udp"
	case "132":
		*at = "sctp"
	}
	return key
}
