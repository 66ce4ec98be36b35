package flows

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// The pipeline in prose. A packet enters at classify and moves only forward.
//
//	 0 classify   By ingress port. Loads the kind of its source into reg0. From the tunnel port only
//	              packets with our VNI and the tunnel source of a known Node go on.
//	10 guard      Packets of pods only: a pod sends with its own MAC and its own addresses, or not at all.
//	60 route      By destination address. Rewrites the Ethernet addresses, loads the egress port into
//	              reg1, the kind of the destination into reg0 and, for a peer, tun_dst and tun_id.
//	65 node       Only what is addressed to a node, a gateway or a multicast group. Here, and nowhere
//	              else, L4 fields are looked at: Neighbor Discovery, injected tunnel packets.
//	80 neighbour  Answers every ARP request and turns a Neighbor Solicitation into an Advertisement;
//	85 advertise  completes that (OVS lets nd_tll be set only where the match already says type 136). On the
//	              kernel's datapath, which cannot write options of ND, the host answers instead; nobody
//	              depends on it, pods and host have a permanent neighbour entry of their router.
//	90 output     Decrements the TTL where the bridge was a router hop, hands to the host's IP stack what
//	              only it can answer (TTL exceeded, packet too big), sends.
//
// Numbers between them are left for conntrack, Services and policies.
//
// reg0 says what kind of endpoint a packet comes from and goes to, one bit for each kind:
//
//	bits 0–2  source       0x1 pod, 0x2 tunnel, 0x4 gateway      written by classify
//	bits 4–6  destination  0x10 pod, 0x20 tunnel, 0x40 gateway   written by route
//	bit  8    too big      the packet exceeds today's MTU        written by guard, only for pods whose
//	                       interface was made when the MTU was larger
//
// reg1 is the OpenFlow port to send to, written by route, read by output.
//
// ARP and ND come after node because a match on the ICMPv6 type in an earlier table would make every
// IPv6 megaflow match on the protocol; so only packets to a node or a multicast group pay for it. What a
// pod sends to another pod's address is routed, ND included: it arrives with a hop limit below 255 and is
// ignored there (RFC 4861 §7.1).

// Table is an OpenFlow table number.
type Table uint8

const (
	Classify   Table = 0
	Guard      Table = 10
	Return     Table = 20
	Returned   Table = 25
	Conntrack  Table = 30
	Direct     Table = 35
	Service    Table = 40
	Sticky     Table = 42
	Pick       Table = 44
	AtEndpoint Table = 45
	Route      Table = 60
	ToNode     Table = 65
	// Tables of policies, see policy.go.
	Isolate       Table = 67
	Identify      Table = 68
	Sender        Table = 69
	EgressAdmin   Table = 70
	EgressPolicy  Table = 71
	IngressAdmin  Table = 72
	IngressPolicy Table = 73
	Commit        Table = 74

	Hide      Table = 75
	Reply     Table = 76
	Neighbour Table = 80
	Advertise Table = 85
	Output    Table = 90
)

// Tables are the names of the tables in use, as they are written to OVSDB (Bridge.flow_tables), in
// pipeline order.
func Tables() []Table {
	return []Table{
		Classify, Guard, Return, Returned, Conntrack, Direct, Service, Sticky, Pick, AtEndpoint, Route, ToNode,
		Isolate, Identify, Sender, EgressAdmin, EgressPolicy, IngressAdmin, IngressPolicy, Commit,
		Hide, Reply, Neighbour, Advertise, Output,
	}
}

// Prefixes are the fields that OVS shall look up by prefix (Flow_Table.prefixes): destinations of both
// families. By default OVS 3.1 does so for IPv4 alone, and each IPv6 destination outside would have a
// megaflow of its own.
func Prefixes() []string { return []string{"ip_dst", "ipv6_dst"} }

func (t Table) String() string {
	switch t {
	case Classify:
		return "classify"
	case Guard:
		return "guard"
	case Return:
		return "return"
	case Returned:
		return "returned"
	case Conntrack:
		return "conntrack"
	case Direct:
		return "direct"
	case Service:
		return "service"
	case Sticky:
		return "sticky"
	case Pick:
		return "pick"
	case AtEndpoint:
		return "endpoint"
	case Route:
		return "route"
	case ToNode:
		return "node"
	case Isolate:
		return "isolation"
	case Identify:
		return "identity"
	case Sender:
		return "sender"
	case EgressAdmin:
		return "egress-admin"
	case EgressPolicy:
		return "egress"
	case IngressAdmin:
		return "ingress-admin"
	case IngressPolicy:
		return "ingress"
	case Commit:
		return "commit"
	case Hide:
		return "masquerade"
	case Reply:
		return "reply"
	case Neighbour:
		return "neighbour"
	case Advertise:
		return "advertise"
	case Output:
		return "output"
	}
	return fmt.Sprintf("table %d", uint8(t))
}

// The two OpenFlow ports with fixed numbers, above those that OVS hands out by itself (1–32767).
const (
	TunnelPort  uint32 = 32768
	GatewayPort uint32 = 32769
)

// RouterMAC is the address that the bridge answers with, for every address that is asked for, and
// GatewayMAC that of the host's own port. Both are locally administered and the same on every node:
// neither is ever seen on a network that nodes share.
func RouterMAC() net.HardwareAddr  { return net.HardwareAddr{0x0e, 0x77, 0x00, 0x00, 0x00, 0x01} }
func GatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x0e, 0x77, 0x00, 0x00, 0x00, 0x02} }

// Kinds of endpoints in reg0.
const (
	fromPod     = "0x1/0x7"
	fromTunnel  = "0x2/0x7"
	fromGateway = "0x4/0x7"
	toPod       = "0x10/0x70"
	toTunnel    = "0x20/0x70"
	toGateway   = "0x40/0x70"

	isFromPod        = "0x1/0x1"
	isNotFromPod     = "0/0x1"
	isNotFromTunnel  = "0/0x2"
	isFromGateway    = "0x4/0x4"
	isNotFromGateway = "0/0x4"
	isToGateway      = "0x40/0x40"
	isTransit        = "0x22/0x22"
	isLoop           = "0x44/0x44"
	isOverlayOnly    = "0/0x44"
	isTooBig         = "0x100/0x100"
)

// Reason is the stable word under which drops are counted.
type Reason string

const (
	DropUnknownPort  Reason = "unknown-port"
	DropUnknownPeer  Reason = "unknown-peer"
	DropNotIP        Reason = "not-ip"
	DropSpoofed      Reason = "spoofed"
	DropDAD          Reason = "duplicate-address-probe"
	DropLinkLocal    Reason = "link-local"
	DropAnnouncement Reason = "arp-announcement"
	DropMulticast    Reason = "multicast"
	DropNoPod        Reason = "no-such-pod"
	DropNoNode       Reason = "no-such-node"
	DropNoRoute      Reason = "no-route"
	DropInjection    Reason = "tunnel-injection"
	DropNDToNode     Reason = "neighbour-discovery"
	DropNotAsked     Reason = "not-a-request"
	DropTransit      Reason = "transit"
	DropGatewayLoop  Reason = "gateway-loop"
	DropNoOutput     Reason = "no-output"
	DropInvalid      Reason = "invalid"
	DropNoEndpoint   Reason = "no-local-endpoint"
	DropSourceRange  Reason = "source-range"

	DropIngress       Reason = "ingress-isolation"
	DropEgress        Reason = "egress-isolation"
	DropDeniedIngress Reason = "ingress-denied"
	DropDeniedEgress  Reason = "egress-denied"
	DropClosed        Reason = "closed"
	DropSenderGone    Reason = "sender-gone"
)

// Sentence says in words why a packet was dropped for this reason.
func (r Reason) Sentence() string {
	switch r {
	case DropUnknownPort:
		return "it came in by a port that belongs to no pod"
	case DropUnknownPeer:
		return "it came through the tunnel from an address that is no Node's, or with another VNI"
	case DropNotIP:
		return "it is no IP packet, and no ARP of this node either"
	case DropSpoofed:
		return "the pod used a MAC or IP address that is not its own"
	case DropDAD:
		return "it asks whether an address is in use; addresses of pods are unique by allocation, silence means free"
	case DropLinkLocal:
		return "link-local traffic does not leave the pod"
	case DropAnnouncement:
		return "the pod announced its own address; nobody here learns addresses from ARP"
	case DropMulticast:
		return "multicast and broadcast are not carried"
	case DropNoPod:
		return "no pod of this node has the destination address"
	case DropNoNode:
		return "no Node has the podCIDR of the destination address"
	case DropNoRoute:
		return "the destination is neither a pod nor a node, and only pods may send elsewhere"
	case DropInjection:
		return "a pod may not send tunnel packets to a node"
	case DropNDToNode:
		return "of Neighbor Discovery only solicitations are answered, those of the pods of this node"
	case DropNotAsked:
		return "it is ARP or Neighbor Discovery, but no request"
	case DropTransit:
		return "it came from one node and would go to another; nodes do not relay"
	case DropGatewayLoop:
		return "it came from the host and would go back to it"
	case DropNoOutput:
		return "no table said where to send it"
	case DropInvalid:
		return "it belongs to no connection and begins none"
	case DropNoEndpoint:
		return "the traffic policy is Local, and of the endpoints that are there none is on this node"
	case DropSourceRange:
		return "the client is in none of the loadBalancerSourceRanges"
	case DropIngress:
		return "NetworkPolicies isolate the destination for ingress, and none of their rules allows it"
	case DropEgress:
		return "NetworkPolicies isolate the source for egress, and none of their rules allows it"
	case DropDeniedIngress, DropDeniedEgress:
		return "a rule of a ClusterNetworkPolicy denies it"
	case DropClosed:
		return "the pod is closed: its labels or a policy that selects it could not be read"
	case DropSenderGone:
		return "the pod that sent it has left this node, and its policies with it"
	}
	return string(r)
}

// pipelineFlows are the flows that every bridge has, with their explicit drops at the end of each table.
func pipelineFlows(w *World) []Flow {
	p := builder{owner: Pipeline}
	gw, tun := inPort(GatewayPort), inPort(TunnelPort)

	p.add(Classify, 100, match(gw, arp()), set(fromGateway, "reg0"), gotoTable(Neighbour))
	p.add(Classify, 90, match(gw, ipv4()), set(fromGateway, "reg0"), gotoTable(w.afterGuard()))
	p.add(Classify, 90, match(gw, ipv6()), set(fromGateway, "reg0"), gotoTable(w.afterGuard()))
	p.drop(Classify, 10, gw, DropNotIP)
	p.drop(Classify, 10, tun, DropUnknownPeer)
	p.drop(Classify, 0, nil, DropUnknownPort)

	p.drop(Guard, 50, match(arp(), field("arp_spa", "0.0.0.0")), DropDAD)
	p.drop(Guard, 50, ipSrc(host(netip.IPv6Unspecified())), DropDAD)
	p.drop(Guard, 50, ipSrc(netip.MustParsePrefix("fe80::/10")), DropLinkLocal)
	p.drop(Guard, 0, nil, DropSpoofed)

	p.routeFlows(w)
	p.nodeFlows(w)
	p.policyFlows(w)
	p.neighbourFlows(w)
	p.outputFlows()
	if w.Services != nil {
		p.serviceFlows(w)
	}
	return p.flows
}

// Priority bands of the route table, highest first.
const (
	prioMulticast = 300 // groups and broadcast: never routed
	prioAddress   = 200 // one address: a pod, a gateway, a node
	prioPeer      = 100 // the podCIDR of a peer
	prioOwnCIDR   = 50  // what is left of our own podCIDRs belongs to no pod
	prioCluster   = 40  // what is left of the cluster CIDRs belongs to no node
	prioOutside   = 10  // everything else, for pods only: the host routes it
)

func (p *builder) routeFlows(w *World) {
	p.drop(Route, prioMulticast, ipDst(netip.MustParsePrefix("224.0.0.0/4")), DropMulticast)
	p.drop(Route, prioMulticast, ipDst(netip.MustParsePrefix("255.255.255.255/32")), DropMulticast)
	p.add(Route, prioMulticast, ipDst(netip.MustParsePrefix("ff00::/8")), gotoTable(ToNode))
	for _, c := range w.ClusterCIDRs {
		p.drop(Route, prioCluster, ipDst(c), DropNoNode)
	}
	for _, f := range []Match{ipv4(), ipv6()} {
		p.add(Route, prioOutside, match(f, field("reg0", isFromPod)), append(toHost(), gotoTable(Isolate))...)
		p.drop(Route, prioOutside, match(f, field("reg0", isNotFromPod)), DropNoRoute)
	}
	p.drop(Route, 0, nil, DropNotIP) // from a peer: all others were sorted out before
}

// selfFlows are what this node's own Node object adds: its host answers for the gateway of each podCIDR
// and for the InternalIPs; an address of its podCIDRs that no pod has leads nowhere.
func selfFlows(w *World) []Flow {
	p := builder{owner: NodeOwner(w.Node.Name)}
	for _, a := range hostAddresses(w.Node) {
		p.add(Route, prioAddress, ipDst(host(a)), append(toHost(), gotoTable(ToNode))...)
	}
	for _, c := range w.Node.PodCIDRs {
		p.drop(Route, prioOwnCIDR, ipDst(c), DropNoPod)
	}
	if w.Services != nil {
		p.masqueradeFlows(w)
	}
	p.hostPolicyFlows(w)
	return p.flows
}

// hostAddresses are the addresses of a node that its host's IP stack answers for: the gateway of each
// podCIDR and the InternalIPs, each once, those inside a podCIDR of another purpose included.
func hostAddresses(n Node) []netip.Addr {
	var out []netip.Addr
	for _, c := range n.PodCIDRs {
		out = append(out, Gateway(c))
	}
	for _, a := range n.Addresses {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Gateway is the address of the node itself in one of its podCIDRs: the first after the network's own.
func Gateway(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr().Next() }

func toHost() Actions {
	return Actions{
		setMAC(RouterMAC(), "eth_src"), setMAC(GatewayMAC(), "eth_dst"),
		set(toGateway, "reg0"), set(fmt.Sprintf("%#x", GatewayPort), "reg1"),
	}
}

func (p *builder) nodeFlows(w *World) {
	pod := field("reg0", isFromPod)
	const solicitation = 135
	p.add(ToNode, 100, match(icmp6(solicitation), field("reg0", isNotFromTunnel)), gotoTable(Neighbour))
	for typ := 133; typ <= 137; typ++ { // router and neighbor solicitations and advertisements, redirects: RFC 4861 §4
		p.drop(ToNode, 98, match(icmp6(typ), field("reg0", isNotFromGateway)), DropNDToNode)
	}
	p.drop(ToNode, 95, ipDst(netip.MustParsePrefix("ff00::/8")), DropMulticast)
	port := field("tp_dst", fmt.Sprint(w.Tunnel.Port))
	p.drop(ToNode, 90, match(field("udp", ""), pod, port), DropInjection)
	p.drop(ToNode, 90, match(field("udp6", ""), pod, port), DropInjection)
	p.add(ToNode, 0, nil, gotoTable(Isolate))
}

func (p *builder) neighbourFlows(w *World) {
	router := RouterMAC()
	p.add(Neighbour, 100, match(arp(), field("arp_op", "1")),
		move("eth_src", "eth_dst"), setMAC(router, "eth_src"), set("2", "arp_op"),
		move("arp_sha", "arp_tha"), setMAC(router, "arp_sha"),
		// The two protocol addresses change places by way of the one register pair free here.
		move("arp_tpa", "reg2"), move("arp_spa", "arp_tpa"), move("reg2", "arp_spa"),
		backToSender())
	p.drop(Neighbour, 0, nil, DropNotAsked)
	p.drop(Advertise, 0, nil, DropNotAsked)
	if w.HostAnswersND {
		p.add(Neighbour, 100, match(icmp6(135), field("reg0", isFromPod)), setMAC(GatewayMAC(), "eth_dst"), output(GatewayPort))
		return
	}
	p.add(Neighbour, 100, icmp6(135),
		move("eth_src", "eth_dst"), setMAC(router, "eth_src"),
		move("ipv6_src", "ipv6_dst"), move("nd_target", "ipv6_src"),
		set("136", "icmpv6_type"), set("0", "icmpv6_code"), gotoTable(Advertise))

	// Option type 2 is the target's link-layer address; the flags are router, solicited, override (RFC 4861 §4.4).
	p.add(Advertise, 100, icmp6(136),
		set("2", "nd_options_type"), set(fmt.Sprint(uint32(0xe0000000)), "nd_reserved"), setMAC(router, "nd_tll"), backToSender())
}

// outputFlows send. The megaflow of a packet whose TTL is decremented matches its TTL and its protocol,
// though no table here looks at the protocol: OVS (3.1) adds both for any rewriting of the IP header, as
// `ofproto/trace` shows for a bridge that holds nothing but "ip,actions=dec_ttl,output:2". Ports are
// never matched. So two pods share one megaflow for each direction, protocol and initial TTL; what goes
// to or comes from the host, whose own stack counts the hop, needs just one.
func (p *builder) outputFlows() {
	reg0 := func(v string) Match { return field("reg0", v) }
	host := Actions{setMAC(GatewayMAC(), "eth_dst"), output(GatewayPort)}

	p.drop(Output, 300, reg0(isTransit), DropTransit)
	p.drop(Output, 300, reg0(isLoop), DropGatewayLoop)
	p.add(Output, 250, reg0(isTooBig), host...)
	for _, f := range []Match{ipv4(), ipv6()} {
		for _, ttl := range []string{"0", "1"} {
			p.add(Output, 200, match(f, reg0(isOverlayOnly), field("nw_ttl", ttl)), host...)
		}
		p.add(Output, 100, match(f, reg0(isOverlayOnly)), decTTL(), outputRegister("reg1"))
	}
	p.add(Output, 90, reg0(isFromGateway), outputRegister("reg1"))
	p.add(Output, 90, reg0(isToGateway), outputRegister("reg1"))
	p.drop(Output, 0, nil, DropNoOutput)
}
