package inspect

import (
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/flows"
)

// expectation says what has to become of packets, from the objects alone: it knows Nodes, podCIDRs, pods, Services and
// policies, and nothing of tables, flows or OVS. `twill verify` compares it with what the bridge does; so it shares no
// code with flows.Compile, and is written as an operator would think it through. Policies are judged by flows.Judge,
// which shares with the bridge what the rules come to, but none of the flows that carry them.
type expectation struct {
	w     *flows.World
	judge *flows.Judge
}

func expectationOf(w *flows.World) expectation { return expectation{w, flows.NewJudge(w)} }

// of is what has to become of a packet which, if it is for a Service, got this endpoint there.
func (x expectation) of(p packet, endpoint netip.AddrPort) Verdict {
	w := x.w
	if p.pod != nil {
		if v, refused := mayNotSend(p); refused {
			return v
		}
	}
	service, decided := x.service(p, endpoint)
	if decided != nil {
		return *decided
	}
	if service {
		p.dst, p.Port = endpoint.Addr(), endpoint.Port()
	}
	v := route(w, p, service)
	if v.Outcome == Dropped && v.Reason != ToItself {
		return v
	}
	if d := x.judge.Decide(tuple(p, netip.AddrPort{})); !d.Allowed {
		return drop(reasonOf(d))
	}
	return v
}

// service tells whether a packet is for a Service that gave it a lawful endpoint, or what becomes of it before.
func (x expectation) service(p packet, endpoint netip.AddrPort) (bool, *Verdict) {
	if x.w.Services == nil {
		return false, nil
	}
	port := servedAt(x.w, p.Proto, p.dst, p.Port)
	if own := x.w.StandsFor(p.dst); own != p.dst {
		if port == nil {
			return false, &Verdict{Outcome: Rejected} // the host translates nothing else to it
		}
		p.dst = own
	}
	served := x.w.Services.Serves(p.dst)
	switch {
	case !served && !inside(x.w.Services.CIDRs, p.dst):
		return false, nil
	case port == nil && served && (aNode(x.w, p.dst) || contains(x.w.Own, p.dst)):
		return false, nil // an external address that is a node's own: other ports are its own
	case port == nil:
		return false, &Verdict{Outcome: Rejected}
	}
	cluster, local := port.Choose(x.w.Node, p.dst.Is4())
	list, external := cluster, !contains(port.ClusterIPs, p.dst)
	ownClient := p.pod != nil || ofHost(x.w.Node, p.src)
	if contains(port.LoadBalancer, p.dst) && len(port.SourceRanges) > 0 && !inside(port.SourceRanges, p.src) {
		v := drop(flows.DropSourceRange)
		return false, &v
	}
	if external && port.ExternalLocal && !ownClient || !external && port.InternalLocal {
		list = local
	}
	switch {
	case len(list) == 0 && len(cluster) > 0:
		v := drop(flows.DropNoEndpoint)
		return false, &v
	case len(list) == 0:
		return false, &Verdict{Outcome: Rejected}
	}
	for _, e := range list {
		if e.Address == endpoint.Addr() && e.Port == endpoint.Port() {
			return true, nil
		}
	}
	return false, &Verdict{Outcome: Delivered, To: "one of the endpoints of " + string(port.Owner)}
}

func aNode(w *flows.World, a netip.Addr) bool {
	if ofHost(w.Node, a) {
		return true
	}
	for _, n := range w.Peers {
		if ofHost(n, a) {
			return true
		}
	}
	return false
}

// route is where a packet goes by its destination; translated says that a Service sent it there.
func route(w *flows.World, p packet, translated bool) Verdict {
	dst := p.dst
	switch {
	case dst.IsMulticast(), dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return drop(flows.DropMulticast)
	}
	if to := podAt(w, dst); to != nil {
		if p.pod != nil && to.OFPort == p.pod.OFPort && !translated {
			return Verdict{Outcome: Dropped, Reason: ToItself} // it reaches its own address without the bridge
		}
		return Verdict{Outcome: Delivered, To: to.Namespace + "/" + to.Pod}
	}
	if ofHost(w.Node, dst) {
		if p.pod == nil && p.peer == nil && !translated {
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
