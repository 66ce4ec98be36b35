package inspect

import (
	"cmp"
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
	// Service, Endpoint and Choices are as in Trace.
	Service  flows.Owner `json:"service,omitempty"`
	Endpoint string      `json:"endpoint,omitempty"`
	Choices  []Choice    `json:"choices,omitempty"`
	// Remembered is as in Trace.
	Remembered bool `json:"remembered,omitempty"`
	// Sends says in words where the Service sends the packet.
	Sends string `json:"sends,omitempty"`
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
	out := Why{Node: t.Node, What: t.What, Verdict: t.Verdict, Next: t.Next, Causes: []flows.Owner{}, Service: t.Service, Endpoint: t.Endpoint, Remembered: t.Remembered}
	out.Allowed = !slices.Contains([]string{Dropped, Rejected, Lost}, t.Verdict.Outcome)
	for _, step := range t.Steps {
		if step.State != "" {
			who := cmpOwner(step.Owner, "nobody here")
			out.Notes = append(out.Notes, fmt.Sprintf("the flow met at %s is %s (%s's): the bridge does not do what is wanted; `twill verify` shows both sides, the agent's next audit repairs it",
				step.Table, step.State, who))
		}
		if object(step.Owner) && !slices.Contains(out.Causes, step.Owner) && !step.Large {
			out.Causes = append(out.Causes, step.Owner)
		}
		if len(step.Choices) > 0 {
			out.Choices = step.Choices
		}
	}
	if t.Remembered {
		out.Notes = append(out.Notes, fmt.Sprintf("session affinity: this client had the endpoint %s before, and gets it until it is forgotten; what becomes of others is asked with --source or another FROM", t.Endpoint))
	}
	if err := s.Behind(); err != nil {
		out.Notes = append(out.Notes, "the agent is behind, so the bridge may not yet do what is wanted: "+err.Error())
	}
	if limit := w.MTU; out.Allowed && q.Size > limit && limit > 0 && t.Verdict.Outcome == Tunnelled {
		out.Notes = append(out.Notes, fmt.Sprintf("a packet of %d bytes is larger than the %d bytes that fit through the tunnel; the host answers its sender with \"fragmentation needed\" (IPv4) or \"packet too big\" (IPv6)", q.Size, limit))
	}
	r := reasoner{w: w, p: p, names: flows.NamesOf(w)}
	if endpoint, err := netip.ParseAddrPort(t.Endpoint); err == nil { // as we wrote it
		r.p.dst, r.p.Port, r.endpoint = endpoint.Addr(), endpoint.Port(), endpoint
	}
	if out.Service != "" && r.endpoint.IsValid() {
		out.Sends = fmt.Sprintf("Service %s sends it to %s port %d", serviceName(out.Service), r.names.Address(r.p.dst.String()), r.p.Port)
	}
	r.opine(&out)
	r.reason(&out)
	return out, nil
}

// object tells whether an owner is an object whose removal can change an answer. What several objects share goes with
// the last of them; rules and conditions of policies are weighed by opine.
func object(o flows.Owner) bool {
	kind, _, _ := strings.Cut(string(o), "/")
	return slices.Contains([]string{"pod", "node", "service"}, kind)
}

// opine asks the policies beside the bridge, and reports where the two differ.
func (r *reasoner) opine(out *Why) {
	passed := out.Allowed && out.Outcome != Answered
	if r.w.Policy == nil || r.p.Reply || !passed && !byPolicy(out.Reason) {
		return
	}
	o := opinionOf(r.w, r.p, r.endpoint)
	if o.Allowed != passed {
		does := "lets it pass"
		if !passed {
			does = "drops it"
		}
		out.Notes = append(out.Notes, fmt.Sprintf("the policies say otherwise than the bridge, which %s: %s; `twill verify` shows which flows differ, the agent's next audit repairs them", does, o.Words))
		return
	}
	r.opinion = &o
	for _, c := range o.causes() {
		if !slices.Contains(out.Causes, c) {
			out.Causes = append(out.Causes, c)
		}
	}
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
	// endpoint is the one that a Service chose; not valid for other packets.
	endpoint netip.AddrPort
	// opinion is what policies say, where they say the same as the bridge; nil if they were not asked.
	opinion *opinion
}

func (r *reasoner) reason(out *Why) {
	switch {
	case slices.ContainsFunc([]flows.Reason{flows.Reason(Alien), flows.Reason(Altered)}, func(x flows.Reason) bool { return x == out.Reason }):
		out.Because = out.Sentence
		out.Remedy = "the agent's audit puts the wanted flow back (`twill status` says whether it runs); find who else writes to the bridge"
	case byPolicy(out.Reason) && r.opinion != nil:
		out.Because, out.Remedy = r.policies(*r.opinion)
	case out.Outcome == Rejected:
		out.Because, out.Remedy = r.reject(out)
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
func (r *reasoner) allow(out *Why) (because, remedy string) {
	var who string
	switch out.Outcome {
	case Delivered:
		who = fmt.Sprintf("pod %s of node %s has the address %s", out.To, r.w.Node.Name, r.p.dst)
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
	if out.Sends != "" {
		who = out.Sends + "; " + who
	}
	if r.opinion != nil && r.opinion.Direction != "" {
		who += "; " + r.opinion.Words
	}
	return who, Unless(out.Causes)
}

// Unless is the remedy where nothing is wrong.
func Unless(causes []flows.Owner) string {
	return "nothing has to change; without any of " + list(causes) + " the answer would be another"
}

// claim is the range or address by which a node is the destination.
func (r *reasoner) claim(n flows.Node) string {
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

func (r *reasoner) drop(out *Why) (because, remedy string) {
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
	case flows.DropNoEndpoint, flows.DropSourceRange:
		return r.local(out)
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

// reject says why nobody serves a packet for a Service.
func (r *reasoner) reject(out *Why) (because, remedy string) {
	port := servedAt(r.w, r.p.Proto, r.p.dst, r.p.Port)
	if port == nil {
		return fmt.Sprintf("%s is an address of Services (%s), and no Service has %s port %d there", r.p.dst, cmp.Or(serviceAt(r.w, r.p.dst), "no Service has it now"), strings.ToUpper(cmp.Or(r.p.Proto, "icmp")), r.p.Port),
			"ask for a port that the Service has (`kubectl get service -A -o wide`); an address in a cache or a DNS answer may be that of a Service that is gone"
	}
	name := serviceName(port.Owner)
	var list []string
	for _, e := range port.Endpoints {
		if e.Address.Is4() == r.p.dst.Is4() {
			list = append(list, e.Address.String()+" is not ready")
		}
	}
	if len(list) == 0 {
		list = []string{"its EndpointSlices list none of this family"}
	}
	return fmt.Sprintf("Service %s (%s) has no endpoint that is ready: %s", name, port.Owner, strings.Join(list, ", ")),
		fmt.Sprintf("a pod that its selector selects has to be ready, or to terminate and still serve: `kubectl -n %s get endpointslices -l kubernetes.io/service-name=%s -o wide`, and the readiness probes of its pods", namespaceOf(name), nameOf(name))
}

// local says why a Service with endpoints gives this client none.
func (r *reasoner) local(out *Why) (because, remedy string) {
	name := serviceName(out.Owner)
	if out.Reason == flows.DropSourceRange {
		return fmt.Sprintf("%s is in none of the loadBalancerSourceRanges of Service %s", r.p.src, name),
			"the client's range has to be in spec.loadBalancerSourceRanges"
	}
	policy := "internalTrafficPolicy"
	if s := r.w.Services; s == nil {
		policy = "traffic policy" // Services have just been switched off
	} else if port := s.Port(out.Owner); port != nil && !slices.Contains(port.ClusterIPs, r.p.dst) {
		policy = "externalTrafficPolicy"
	}
	return fmt.Sprintf("%s of Service %s is Local, and none of its endpoints that are ready is on node %s", policy, name, r.w.Node.Name),
		fmt.Sprintf("a pod of the Service has to be ready on node %s, or %s has to be Cluster", r.w.Node.Name, policy)
}

func namespaceOf(name string) string { ns, _, _ := strings.Cut(name, "/"); return ns }
func nameOf(name string) string      { _, n, _ := strings.Cut(name, "/"); return n }

func (r *reasoner) origin() string {
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
