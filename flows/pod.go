package flows

import (
	"fmt"
	"net/netip"
	"slices"
)

// ethernetHeader is the length in bytes of an untagged Ethernet header (IEEE 802.3).
const ethernetHeader = 14

// podFlows admit what one interface of a pod may send and deliver what is for it.
func podFlows(w *World, a Attachment) []Flow {
	p := builder{owner: a.Owner()}
	in := inPort(a.OFPort)
	own := match(in, ethSrc(a.MAC))

	isolation := w.isolation(a)
	enter, identity := Actions{set(fromPod, "reg0")}, "0"
	if isolation != nil {
		identity = fmt.Sprintf("%#x", isolation.Identity|tracked)
		enter = append(enter, set(identity, fromSubject))
		p.isolationFlows(w, a, isolation)
	}
	p.add(Classify, 100, in, append(enter, gotoTable(Guard))...)
	p.add(Sender, 100, in, set(identity, fromSubject), gotoTable(EgressAdmin))

	var next Actions
	if a.MTU > w.MTU {
		next = append(next, checkLarger(w.MTU+ethernetHeader, "NXM_NX_REG0[8]"))
	}
	next = append(next, gotoTable(w.afterGuard()))
	for _, addr := range a.Addresses {
		p.add(Guard, 100, match(own, ipSrc(host(addr))), slices.Clone(next)...)
		if addr.Is4() {
			sender := match(own, arp(), field("arp_spa", addr.String()), field("arp_sha", a.MAC.String()))
			p.add(Guard, 100, sender, gotoTable(Neighbour))
			p.drop(Guard, 110, match(sender, field("arp_tpa", addr.String())), DropAnnouncement)
		}
		deliver := Actions{
			setMAC(RouterMAC(), "eth_src"), setMAC(a.MAC, "eth_dst"),
			set(toPod, "reg0"), set(fmt.Sprintf("%#x", a.OFPort), "reg1"),
		}
		if isolation != nil {
			deliver = append(deliver, set(fmt.Sprintf("%#x", isolation.Identity|tracked), toSubject))
		}
		p.add(Route, prioAddress, ipDst(host(addr)), append(deliver, gotoTable(Isolate))...)
		if hide := w.Node.masquerade(addr.Is4()); w.Services != nil && hide.IsValid() {
			p.hairpin(addr, hide)
		}
	}
	if slices.ContainsFunc(a.Addresses, netip.Addr.Is6) {
		// A solicitation may come from the interface's link-local address (RFC 4861 §7.2.2). The lower
		// priority keeps its match on the ICMPv6 type out of the megaflows of all other packets.
		linkLocal := match(own, Match{{"icmp6", ""}, {"ipv6_src", "fe80::/10"}, {"icmp_type", "135"}})
		p.add(Guard, 90, linkLocal, gotoTable(Neighbour))
	}
	p.drop(Guard, 10, in, DropSpoofed)
	return p.flows
}
