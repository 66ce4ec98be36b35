package flows

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// Services in prose. Three tables see every packet and match addresses alone:
//
//	20 return      To this node's masquerade address: the masquerade is undone (zone masquerade).
//	30 conntrack   To an address of a Service: on to the Service tables (zone service). To an address that is an
//	               endpoint, from here: looked up as well, since the same client port may be in use through a Service.
//	35 direct      Of that, what was opened straight to the endpoint is tracked and translated. What answers a client
//	               that is an endpoint itself is not translated before policies have seen it.
//	76 reply       From an endpoint to somebody of this node: translation is undone (zone service).
//
// What is for a Service goes on:
//
//	40 service     Known connections to route. New ones by protocol, address and port to a group; those
//	               that nobody serves to the host, which rejects them.
//	42 sticky      Session affinity: what endpoint a client has had. Learned from packets.
//	44 pick        Session affinity: if that endpoint is still there, to it; else to the group.
//	45 endpoint    Session affinity: learn, commit, translate.
//	75 masquerade  The client gets the masquerade address where answers would not come back here: a pod that
//	               is its own endpoint, and clients of the host whose answers would take another way.
//
// Translation happens once, on the node where the packet meets the Service, and is undone there.

// Zones of connection tracking. Each sees one consistent view of a connection.
const (
	ZoneService    = 0x7710
	ZoneMasquerade = 0x7711
)

// Bits of reg0 for Services.
const (
	nodeBits    = "0x400/0x400"   // it goes to another node itself, which may wait for it as the client of a node port
	serviceBits = "0x1000/0x1000" // the packet has been translated to an endpoint
	returnBits  = "0x2000/0x2000" // its masquerade has been undone, and the host waits for it
	stickyBits  = "0x4000/0x4000" // an endpoint was remembered
	hairpinBits = "0x8000/0x8000" // it goes back by the port that it came from
	noService   = "0/0x1000"
	toPodsAway  = "0x20/0x420"

	nodeFromPod     = "0x421/0x421"
	servedPod       = "0x1001/0x1001"
	servedHost      = "0x1004/0x1004"
	servedHostLoop  = "0x1044/0x1044"
	servedHostAway  = "0x1024/0x1024"
	servedHostToPod = "0x1024/0x1424"
	returnLoop      = "0x2044/0x2044"
	stickyFromPod   = "0x4001/0x4001"
	notFromTunnel   = "0/0x2"
	markHairpin     = "0x1"
	markHost        = "0x4"
	stickyCookie    = 0x7374696b7900 // of all that is learned: "stiky"
	maxStickySecond = 65535          // what hard_timeout can hold
)

// RejectMAC is the source of what is handed to the host to be rejected.
func RejectMAC() []byte { return []byte{0x0e, 0x77, 0x00, 0x00, 0x00, 0x03} }

// afterGuard and afterPolicy are where packets go on.
func (w *World) afterGuard() Table {
	if w.Services == nil {
		return Route
	}
	return Return
}

func (w *World) afterPolicy() Table {
	if w.Services == nil {
		return Output
	}
	return Hide
}

// conntrack sends a packet through a zone, where known connections are translated, and goes on at a table.
func conntrack(zone uint16, next Table) Action {
	return Action{"ct", fmt.Sprintf("(table=%d,zone=%d,nat)", next, zone)}
}

// commit tracks a new connection with a translation and a mark, if not empty.
func commit(zone uint16, next Table, nat, mark string) Action {
	if mark != "" {
		mark = ",exec(set_field:" + mark + "->ct_mark)"
	}
	return Action{"ct", fmt.Sprintf("(commit,table=%d,zone=%d,nat(%s)%s)", next, zone, nat, mark)}
}

func resubmit(t Table) Action { return Action{"resubmit", fmt.Sprintf("(,%d)", t)} }

// serviceFlows are those that every bridge has.
func (p *builder) serviceFlows(w *World) {
	reg0 := func(v string) Match { return field("reg0", v) }
	state := func(v string) Match { return field("ct_state", v) }

	p.add(Return, 0, nil, gotoTable(Conntrack))
	host := append(Actions{set(returnBits, "reg0")}, toHost()...)
	p.add(Returned, 100, field("ct_mark", markHost), append(host, gotoTable(Isolate))...)
	p.add(Returned, 100, field("ct_mark", markHairpin), set(hairpinBits, "reg0"), gotoTable(Route))
	p.add(Returned, 0, nil, gotoTable(Route))

	p.add(Conntrack, 0, nil, gotoTable(Route))
	for _, c := range w.Services.CIDRs {
		p.add(Conntrack, 10, ipDst(c), gotoTable(Service))
	}
	for _, f := range []Match{ipv4(), ipv6()} {
		// Without NAT: an entry whose translation changes nothing ends the userspace datapath of Open vSwitch 3.1, once a
		// packet meets it between expiry and sweep. What is sent each minute does that.
		p.add(Direct, 100, match(state("+new+trk"), f), Action{"ct", fmt.Sprintf("(commit,table=%d,zone=%d)", Route, ZoneService)})
	}
	for _, f := range []string{"tcp", "tcp6"} {
		// Answers to an endpoint on another node are new to this one as well: its client's packets came by the tunnel.
		opens := Match{{f, ""}, {"tcp_flags", "+syn-ack"}}
		if !w.HostAnswersND { // the userspace datapath
			// A kubelet's probes are most of such connections, and one that times out is followed by late packets. The kernel
			// of the host chooses ports by destination, so two of them hardly ever need to be told apart.
			p.add(Direct, 120, match(state("+new+trk"), opens, reg0(isFromGateway)), Action{"ct", fmt.Sprintf("(commit,table=%d,zone=%d)", Route, ZoneService)})
		}
		// No address: the connection keeps its own, and gets another port where a Service's has that one.
		p.add(Direct, 110, match(state("+new+trk"), opens), commit(ZoneService, Route, "src", ""))
		p.add(Direct, 105, match(state("+new+trk"), Match{{f, ""}}), gotoTable(Route))
		p.add(Direct, 90, match(state("+est-rpl+trk"), Match{{f, ""}}), conntrack(ZoneService, Route))
	}
	if w.HostAnswersND { // the kernel's datapath
		// It drops what opens a connection whose answers would be those of a Service's connection, so that the second gets another
		// port here, too. An answer whose request was not tracked here looks as if it opened one, and is left alone unless it collides.
		for _, f := range []string{"udp", "udp6", "sctp", "sctp6"} {
			p.add(Direct, 110, match(state("+new+trk"), Match{{f, ""}}), commit(ZoneService, Route, "src", ""))
			p.add(Direct, 90, match(state("+est-rpl+trk"), Match{{f, ""}}), conntrack(ZoneService, Route))
		}
	}
	for _, f := range []Match{ipv4(), ipv6()} {
		p.add(Direct, 80, match(state("+rel-rpl+trk"), f), conntrack(ZoneService, Route)) // errors about answers
	}
	p.add(Direct, 0, nil, gotoTable(Route))

	for _, f := range []Match{ipv4(), ipv6()} {
		// The node's own processes reach an endpoint outside of the cluster, such as an API server, as pods do.
		p.add(Route, prioOutside+1, match(f, reg0(servedHost)), append(toHost(), gotoTable(Isolate))...)
	}
	p.drop(Service, 300, state("+inv+trk"), DropInvalid)
	p.add(Service, 290, state("-new+trk"), set(serviceBits, "reg0"), gotoTable(Route))
	// The userspace datapath translates what follows the first packet of a connection that nobody has answered yet (all of
	// UDP that only goes one way), and calls it new; the kernel leaves that to the endpoint's group.
	p.add(Service, 290, state("+new+trk+dnat"), set(serviceBits, "reg0"), gotoTable(Route))
	p.reject(Service, 0, nil)
	p.drop(Pick, 0, nil, DropNoOutput)
	p.drop(AtEndpoint, 0, nil, DropNoOutput)

	p.add(Hide, 300, reg0(noService), gotoTable(Reply))
	p.add(Hide, 0, nil, gotoTable(Reply))

	p.add(Reply, 200, reg0(toPodsAway), gotoTable(Output))
	for _, typ := range []int{3, 11, 12} { // unreachable, time exceeded, parameter problem: RFC 792
		p.add(Reply, 50, Match{{"icmp", ""}, {"icmp_type", fmt.Sprint(typ)}}, conntrack(ZoneService, Output))
	}
	for typ := 1; typ <= 4; typ++ { // unreachable, too big, time exceeded, parameter problem: RFC 4443
		p.add(Reply, 50, icmp6(typ), conntrack(ZoneService, Output))
	}
	p.add(Reply, 0, nil, gotoTable(Output))

	for _, r := range standInRanges() {
		// What answers another node from a stand-in goes by the host, which puts its own address back.
		p.add(Output, 320, match(reg0(nodeFromPod), ipSrc(r)), setMAC(GatewayMAC(), "eth_dst"), output(GatewayPort))
	}
	p.add(Output, 310, reg0(servedHostLoop), backToSender())
	p.add(Output, 310, reg0(returnLoop), backToSender())
	for _, f := range []Match{ipv4(), ipv6()} {
		p.add(Output, 150, match(f, reg0(hairpinBits)), decTTL(), backToSender())
	}
}

// reject hands a packet to the host, which answers at once with a reset or an ICMP error: OpenFlow can make
// neither. The host knows it by its source MAC.
func (p *builder) reject(t Table, priority uint16, m Match) {
	hand := Actions{setMAC(RejectMAC(), "eth_src"), setMAC(GatewayMAC(), "eth_dst")}
	p.add(t, priority+1, match(field("reg0", isFromGateway), m), append(slices.Clone(hand), backToSender())...)
	p.add(t, priority, m, append(hand, output(GatewayPort))...)
}

// masqueradeFlows are what this node's own addresses add.
func (p *builder) masqueradeFlows(w *World) {
	reg0 := func(v string) Match { return field("reg0", v) }
	for _, c := range w.Node.PodCIDRs {
		hide := Masquerade(c)
		if !hide.IsValid() {
			continue
		}
		f := family(hide)
		p.add(Return, 100, ipDst(host(hide)), conntrack(ZoneMasquerade, Returned))
		p.add(Hide, 140, match(reg0(servedHostLoop), f), hideBehind(hide, markHost))
		// Answers to the gateway's address come back through the tunnel, and to the addresses of the Node those of pods do;
		// another node itself answers them by the underlay. What else the host has, no other node knows.
		p.add(Hide, 130, match(reg0(servedHostAway), ipSrc(host(Gateway(c)))), gotoTable(Reply))
		for _, a := range w.Node.Addresses {
			if a.Is4() == hide.Is4() {
				p.add(Hide, 130, match(reg0(servedHostToPod), ipSrc(host(a))), gotoTable(Reply))
			}
		}
		p.add(Hide, 120, match(reg0(servedHostAway), f), hideBehind(hide, markHost))
		p.hideRange(w, c)
	}
	for _, c := range w.ClusterCIDRs {
		p.hideRange(w, c)
	}
	for _, c := range w.Node.PodCIDRs {
		p.add(Hide, 115, match(reg0(servedHost), ipSrc(host(Gateway(c)))), gotoTable(Reply))
	}
}

// hidePeer hides pods of a peer that come by way of the host. The peer itself is seen: answers to it go by the host.
func (p *builder) hidePeer(w *World, peer Node) {
	for _, c := range peer.PodCIDRs {
		p.hideRange(w, c)
	}
}

// hideRange hides the clients of a range that come by way of the host: answers would go straight to them, past
// the host that has to see them.
func (p *builder) hideRange(w *World, c netip.Prefix) {
	wider := func(o netip.Prefix) bool { return o.Bits() < c.Bits() && o.Contains(c.Addr()) }
	if slices.ContainsFunc(w.ClusterCIDRs, wider) {
		return
	}
	if hide := w.Node.masquerade(c.Addr().Is4()); hide.IsValid() {
		p.add(Hide, 110, match(field("reg0", servedHost), ipSrc(c)), hideBehind(hide, markHost))
	}
}

// hairpin lets a pod reach itself through a Service: it would not answer to its own address.
func (p *builder) hairpin(pod, hide netip.Addr) {
	both := match(ipSrc(host(pod)), ipDst(host(pod))[1:])
	p.add(Hide, 200, match(field("reg0", servedPod), both), set(hairpinBits, "reg0"), hideBehind(hide, markHairpin))
}

func hideBehind(a netip.Addr, mark string) Action {
	nat := "src=" + a.String()
	return commit(ZoneMasquerade, Reply, nat, mark)
}

// serviceAddressFlows lead to the Service tables what is for one address.
func serviceAddressFlows(w *World, a netip.Addr) []Flow {
	p := builder{owner: AddressOwner(a)}
	p.add(Conntrack, 100, ipDst(host(a)), conntrack(ZoneService, Service))
	if w.isNode(a) || slices.Contains(w.Own, a) {
		// A Service has the address of a node as externalIP. All other ports are the node's own.
		p.add(Service, 20, ipDst(host(a)), gotoTable(Route))
		// And answers to what it has begun by that address: nothing was tracked of those.
		p.add(Service, 310, match(field("ct_state", "+inv+trk"), ipDst(host(a))), gotoTable(Route))
	}
	if s, ok := w.StandIn(a); ok {
		p.add(Conntrack, 100, ipDst(host(s)), conntrack(ZoneService, Service))
	}
	return p.flows
}

func (w *World) isNode(a netip.Addr) bool {
	if slices.Contains(hostAddresses(w.Node), a) {
		return true
	}
	for _, n := range w.Peers {
		if slices.Contains(hostAddresses(n), a) {
			return true
		}
	}
	return false
}

// translated are the addresses from which answers of endpoints come: those of endpoints, and those that linger.
func (w *World) translated() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if w.Services == nil {
			return
		}
		for _, a := range w.Services.endpoints.All() {
			if !yield(a) {
				return
			}
		}
		for a := range w.Lingering {
			if !w.Services.Leads(a) && w.translates(a) && !yield(a) {
				return
			}
		}
	}
}

// translates is true for one of them.
func (w *World) translates(a netip.Addr) bool {
	return w.Services != nil && (w.Services.Leads(a) || w.Lingering[a] && !w.Services.Serves(a))
}

// endpointAddressFlows track what goes straight to an endpoint and bring answers of it back.
func endpointAddressFlows(a netip.Addr) []Flow {
	p := builder{owner: endpointOwner(a)}
	look := Action{"ct", fmt.Sprintf("(table=%d,zone=%d)", Direct, ZoneService)}
	p.add(Conntrack, 50, match(field("reg0", notFromTunnel), ipDst(host(a))), look)
	p.add(Reply, 100, ipSrc(host(a)), conntrack(ZoneService, Output))
	return p.flows
}
