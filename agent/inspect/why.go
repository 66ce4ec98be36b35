package inspect

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// Why is the short answer to what becomes of a packet, and because of what.
type Why struct {
	Node    string `json:"node"`
	What    string `json:"what"`
	Allowed bool   `json:"allowed"`
	Verdict
	// Because is the cause with the names of the objects, Remedy what would change it.
	Because string `json:"because"`
	Remedy  string `json:"remedy"`
	// Causes are the objects without any one of which the answer would be another. The pipeline is none: what
	// it decides, no object changes.
	Causes []flows.Owner `json:"causes"`
	// Notes are what else an operator has to know: flows on the way that are not as they should be, an agent
	// that is behind, a packet that is too large.
	Notes []string `json:"notes,omitempty"`
	Next  *Next    `json:"next,omitempty"`
}

// Why asks the bridge what it does with a packet, and says because of which object.
func (s *Subject) Why(ctx context.Context, q Question) (Why, error) {
	w, err := s.world()
	if err != nil {
		return Why{}, err
	}
	p, err := resolve(w, q)
	if err != nil {
		return Why{}, err
	}
	tracer, done, err := s.tracer(ctx)
	if err != nil {
		return Why{}, err
	}
	defer done()
	t, err := s.trace(ctx, tracer, w, p)
	if err != nil {
		return Why{}, err
	}
	out := Why{Node: t.Node, What: t.What, Verdict: t.Verdict, Next: t.Next, Causes: []flows.Owner{}}
	out.Allowed = !slices.Contains([]string{Dropped, Lost}, t.Verdict.Outcome)
	for _, step := range t.Steps {
		if step.State != "" {
			who := cmpOwner(step.Owner, "nobody here")
			out.Notes = append(out.Notes, fmt.Sprintf("the flow met at %s is %s (%s's): the bridge does not do what is wanted; `twill verify` shows both sides, the agent's next audit repairs it",
				step.Table, step.State, who))
		}
		if step.Owner != flows.Pipeline && step.Owner != "" && !slices.Contains(out.Causes, step.Owner) && !step.Large {
			out.Causes = append(out.Causes, step.Owner)
		}
	}
	if err := s.Behind(); err != nil {
		out.Notes = append(out.Notes, "the agent is behind, so the bridge may not yet do what is wanted: "+err.Error())
	}
	if limit := w.MTU; out.Allowed && q.Size > limit && limit > 0 && t.Verdict.Outcome == Tunnelled {
		out.Notes = append(out.Notes, fmt.Sprintf("a packet of %d bytes is larger than the %d bytes that fit through the tunnel; the host answers its sender with \"fragmentation needed\" (IPv4) or \"packet too big\" (IPv6)", q.Size, limit))
	}
	reasoner{w, p, flows.NamesOf(w)}.reason(&out)
	return out, nil
}

func cmpOwner(o flows.Owner, other string) string {
	if o == "" {
		return other
	}
	return string(o)
}

// reasoner puts causes into words.
type reasoner struct {
	w     *flows.World
	p     packet
	names *flows.Names
}

func (r reasoner) reason(out *Why) {
	switch {
	case slices.ContainsFunc([]flows.Reason{flows.Reason(Alien), flows.Reason(Altered)}, func(x flows.Reason) bool { return x == out.Reason }):
		out.Because = out.Sentence
		out.Remedy = "the agent's audit puts the wanted flow back (`twill status` says whether it runs); find who else writes to the bridge"
	case out.Outcome == Dropped:
		out.Because, out.Remedy = r.drop(out)
	case out.Outcome == Lost:
		out.Because = "the flow that decided sends to a port that belongs to no pod: " + out.Sentence
		out.Remedy = "`twill verify` shows the flow as it is and as it should be"
	default:
		out.Because, out.Remedy = r.allow(out)
	}
}

// allow says which objects let the packet through.
func (r reasoner) allow(out *Why) (because, remedy string) {
	var who string
	switch out.Outcome {
	case Delivered:
		who = fmt.Sprintf("pod %s of this node has the address %s", out.To, r.p.dst)
	case Tunnelled:
		who = fmt.Sprintf("Node %s has %s", out.To, r.claim(r.w.Peers[out.To]))
	case Answered:
		who = "the bridge answers ARP and Neighbor Discovery itself"
	default:
		who = fmt.Sprintf("the host of node %s routes it: %s is no address of a pod or of another node", r.w.Node.Name, r.p.dst)
		if ofHost(r.w.Node, r.p.dst) {
			who = fmt.Sprintf("%s is an address of node %s itself", r.p.dst, r.w.Node.Name)
		}
	}
	return who, "nothing has to change; without any of " + list(out.Causes) + " the answer would be another"
}

// claim is the range or address by which a node is the destination.
func (r reasoner) claim(n flows.Node) string {
	if contains(n.Addresses, r.p.dst) {
		return "the address " + r.p.dst.String()
	}
	for _, c := range n.PodCIDRs {
		if c.Contains(r.p.dst) {
			return fmt.Sprintf("the podCIDR %s, which contains %s", c, r.p.dst)
		}
	}
	return r.p.dst.String()
}

func (r reasoner) drop(out *Why) (because, remedy string) {
	dst, node := r.p.dst, r.w.Node.Name
	switch out.Reason {
	case flows.DropSpoofed, flows.DropLinkLocal, flows.DropDAD:
		if r.p.pod == nil {
			break
		}
		return fmt.Sprintf("pod %s/%s sent from %s; it may send only from %s with MAC %s", r.p.pod.Namespace, r.p.pod.Pod, r.p.src, addressList(r.p.pod.Addresses), r.p.pod.MAC),
			"the pod has to use an address of its own; addresses that it makes up (VMs, bridges, VRRP inside the pod) are not carried"
	case flows.DropNoPod:
		return fmt.Sprintf("%s is in podCIDR %s of Node %s, and no pod attached there has it", dst, prefixOf(r.w.Node.PodCIDRs, dst), node),
			fmt.Sprintf("a pod with that address has to run on node %s: compare `kubectl get pods -A -o wide` with `twill status pods`; an address seen in a cache or a DNS answer may be that of a pod that is gone", node)
	case flows.DropNoNode:
		return fmt.Sprintf("%s is in the cluster's range %s, and no Node known here has a podCIDR that contains it", dst, prefixOf(r.w.ClusterCIDRs, dst)),
			"a Node with that podCIDR has to exist (`kubectl get nodes -o custom-columns=N:.metadata.name,C:.spec.podCIDRs`); if it does, `twill status` says why its claim was refused"
	case flows.DropNoRoute:
		return fmt.Sprintf("%s is no address of a pod or node, and only pods of this node may send elsewhere", dst),
			"what comes from " + r.origin() + " has to go to a pod or node; let the host route other traffic"
	case flows.DropInjection:
		return fmt.Sprintf("UDP port %d of %s is the tunnel's: a pod that could send there could forge packets of other pods", r.p.Port, r.names.Address(dst.String())),
			"use another port, or set --tunnel-port of every agent to a port that no pod needs"
	case flows.DropTransit:
		return fmt.Sprintf("it came from node %s and would leave for %s; nodes do not relay", strings.TrimPrefix(r.p.From, "node/"), r.names.Address(dst.String())),
			"the sending node has a stale idea of where the address is: `twill status` there"
	case flows.DropUnknownPeer:
		return "it came through the tunnel from an address that is no Node's InternalIP, or with another VNI",
			"compare the InternalIPs of all Nodes, --tunnel-address and --vni on both sides"
	case flows.DropUnknownPort:
		return "the port by which it came in belongs to no pod that is attached",
			"`twill status pods`; CNI DEL may be under way for it"
	case flows.DropMulticast:
		return fmt.Sprintf("%s is a multicast or broadcast address, and the pod network carries none", dst), "send to the addresses of the receivers"
	case ToItself:
		return fmt.Sprintf("%s is the sender's own address; the bridge never sends a packet back by the port it came from", dst),
			"a pod reaches its own address inside its namespace, by lo"
	case PortGone:
		return "Open vSwitch has no working port where it would leave",
			"`ovs-vsctl show`: is the interface of the pod there, without an error? The agent puts a lost port back by itself"
	case "":
		return out.Sentence, "`twill trace` shows each step"
	}
	return out.Reason.Sentence(), "this is so on every bridge; no object changes it"
}

func (r reasoner) origin() string {
	if r.p.peer != nil {
		return "node " + r.p.peer.Name
	}
	return "the host"
}

func prefixOf(list []netip.Prefix, a netip.Addr) string {
	for _, c := range list {
		if c.Contains(a) {
			return c.String()
		}
	}
	return "(unknown)"
}

func addressList(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, " and ")
}

func list(owners []flows.Owner) string {
	var out []string
	for _, o := range owners {
		out = append(out, string(o))
	}
	if len(out) == 0 {
		return "the pipeline"
	}
	return strings.Join(out, ", ")
}
