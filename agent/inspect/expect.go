package inspect

import (
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/flows"
)

// expect says what has to become of a packet, from the objects alone: it knows Nodes, podCIDRs and pods, and
// nothing of tables, flows or OVS. `twill verify` compares it with what the bridge does; so it shares no code
// with flows.Compile, and is written as an operator would think it through.
func expect(w *flows.World, p packet) Verdict {
	if p.pod != nil {
		if v, refused := mayNotSend(p); refused {
			return v
		}
	}
	dst := p.dst
	switch {
	case dst.IsMulticast(), dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return drop(flows.DropMulticast)
	}
	if to := podAt(w, dst); to != nil {
		if p.pod != nil && to.OFPort == p.pod.OFPort {
			return Verdict{Outcome: Dropped, Reason: ToItself} // it reaches its own address without the bridge
		}
		return Verdict{Outcome: Delivered, To: to.Namespace + "/" + to.Pod}
	}
	if ofHost(w.Node, dst) {
		if p.pod == nil && p.peer == nil {
			return drop(flows.DropGatewayLoop)
		}
		return toNode(w, p, Verdict{Outcome: ToHost})
	}
	for name, n := range w.Peers {
		reached, reachable := n.TunnelAddress(w.Tunnel.Local)
		if !reachable || !reached.IsValid() {
			continue
		}
		direct := contains(n.Addresses, dst)
		if !direct && !inside(n.PodCIDRs, dst) {
			continue
		}
		if p.peer != nil {
			return drop(flows.DropTransit)
		}
		v := Verdict{Outcome: Tunnelled, To: name}
		if direct {
			return toNode(w, p, v)
		}
		return v
	}
	switch {
	case inside(w.Node.PodCIDRs, dst):
		return drop(flows.DropNoPod)
	case inside(w.ClusterCIDRs, dst):
		return drop(flows.DropNoNode)
	case p.pod == nil:
		return drop(flows.DropNoRoute)
	}
	return Verdict{Outcome: ToHost} // and from there wherever the host routes it
}

// mayNotSend knows what a pod may not even send.
func mayNotSend(p packet) (Verdict, bool) {
	own := contains(p.pod.Addresses, p.src)
	switch {
	case own:
		return Verdict{}, false
	case p.src.Is6() && p.src.IsLinkLocalUnicast():
		return drop(flows.DropLinkLocal), true
	}
	return drop(flows.DropSpoofed), true
}

// toNode: whoever speaks to a node itself may not send tunnel packets, if it is a pod of this node.
func toNode(w *flows.World, p packet, allowed Verdict) Verdict {
	if p.pod != nil && p.Proto == "udp" && p.Port == w.Tunnel.Port {
		return drop(flows.DropInjection)
	}
	return allowed
}

func drop(r flows.Reason) Verdict { return Verdict{Outcome: Dropped, Reason: r} }

func ofHost(n flows.Node, a netip.Addr) bool {
	return contains(n.Addresses, a) || contains(gateways(n), a)
}

func contains(list []netip.Addr, a netip.Addr) bool {
	for _, x := range list {
		if x == a {
			return true
		}
	}
	return false
}

func inside(list []netip.Prefix, a netip.Addr) bool {
	for _, c := range list {
		if c.Contains(a) {
			return true
		}
	}
	return false
}

// short is a verdict reduced to what two evaluators have to agree on.
func (v Verdict) short() string {
	switch v.Outcome {
	case Dropped:
		return fmt.Sprintf("dropped (%s)", v.Reason)
	case Delivered:
		return "delivered to pod " + v.To
	case Tunnelled:
		return "through the tunnel to node " + v.To
	case ToHost:
		return "to the host"
	}
	return v.Outcome
}
