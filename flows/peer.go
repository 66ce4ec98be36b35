package flows

import (
	"fmt"
	"net/netip"
	"slices"
)

// TunnelAddress is the address at which a node of this underlay family is reached: its first
// InternalIP of the family of local. ok is false when it has none.
func (n Node) TunnelAddress(local netip.Addr) (addr netip.Addr, ok bool) {
	i := slices.IndexFunc(n.Addresses, func(a netip.Addr) bool { return a.Is4() == local.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return n.Addresses[i], true
}

// peerFlows let in what comes from one peer through the tunnel and send to it what is for its pods and
// for its own addresses: one flow to come in, one for each podCIDR and for each address.
func peerFlows(w *World, peer Node) ([]Flow, error) {
	remote, ok := peer.TunnelAddress(w.Tunnel.Local)
	if !ok {
		return nil, fmt.Errorf("node %s: no InternalIP of the family of this node's tunnel address %s; give the node one, or choose the other family with --tunnel-address on every node",
			peer.Name, w.Tunnel.Local)
	}
	p := builder{owner: NodeOwner(peer.Name)}
	tunSrc, tunDst := "tun_src", "tun_dst"
	if remote.Is6() {
		tunSrc, tunDst = "tun_ipv6_src", "tun_ipv6_dst"
	}
	vni := fmt.Sprintf("%#x", w.Tunnel.VNI)
	p.add(Classify, 100,
		match(field("tun_id", vni), field(tunSrc, remote.String()), inPort(TunnelPort)),
		set(fromTunnel, "reg0"), gotoTable(w.afterGuard()))

	send := Actions{
		setMAC(RouterMAC(), "eth_src"), setMAC(RouterMAC(), "eth_dst"),
		set(remote.String(), tunDst), set(vni, "tun_id"),
		set(toTunnel, "reg0"), set(fmt.Sprintf("%#x", TunnelPort), "reg1"),
	}
	for _, c := range peer.PodCIDRs {
		p.add(Route, prioPeer, ipDst(c), append(slices.Clone(send), gotoTable(Isolate))...)
	}
	for _, a := range peer.Addresses {
		toNode := slices.Clone(send)
		if w.Services != nil {
			toNode = append(toNode, set(nodeBits, "reg0"))
		}
		p.add(Route, prioAddress, ipDst(host(a)), append(toNode, gotoTable(ToNode))...)
	}
	if w.Services != nil {
		p.hidePeer(w, peer)
	}
	return p.flows, nil
}
