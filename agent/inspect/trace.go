package inspect

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
)

// Step is one table on a packet's way, in words.
type Step struct {
	Table    string      `json:"table"`
	Owner    flows.Owner `json:"owner"`
	State    State       `json:"state,omitempty"`
	Cookie   string      `json:"cookie"`
	Sentence string      `json:"sentence"`
	// Drop is the reason for which this flow drops, one stable word; empty for all others.
	Drop flows.Reason `json:"drop,omitempty"`
	// Large marks a step that only packets above the MTU take.
	Large bool `json:"large,omitempty"`
	// Choices are the endpoints among which the group of this step chooses.
	Choices []Choice `json:"choices,omitempty"`
}

// Outcomes of a Verdict.
const (
	Delivered = "delivered" // to a pod of this node
	Tunnelled = "tunnelled" // to another node
	ToHost    = "host"      // to the host's own IP stack
	Answered  = "answered"  // back to the sender, by the bridge itself
	Rejected  = "rejected"  // to the host, which answers with a reset or an ICMP error: no endpoint
	Dropped   = "dropped"
	Lost      = "lost" // sent to a port that is no pod's, or nowhere
)

// Verdict is what became of a packet on one node.
type Verdict struct {
	Outcome string `json:"outcome"`
	// To is the pod (NAMESPACE/NAME) or node that gets it.
	To string `json:"to,omitempty"`
	// Reason is the stable word of a drop.
	Reason flows.Reason `json:"reason,omitempty"`
	// Owner is the object whose flow decided, and Table where.
	Owner    flows.Owner `json:"owner,omitempty"`
	Table    string      `json:"table,omitempty"`
	Sentence string      `json:"sentence"`
}

// Next is the question to ask on the node at the other end of the tunnel.
type Next struct {
	Node     string   `json:"node"`
	Question Question `json:"question"`
}

// Trace is a packet's way through one node's bridge.
type Trace struct {
	Node string `json:"node"`
	// What is the packet in words, Packet in the syntax of ofproto/trace.
	What    string  `json:"what"`
	Packet  string  `json:"packet"`
	Steps   []Step  `json:"steps"`
	Verdict Verdict `json:"verdict"`
	Next    *Next   `json:"next,omitempty"`
	// Service is the port of a Service that the packet is for, Endpoint the one it was translated to.
	Service  flows.Owner `json:"service,omitempty"`
	Endpoint string      `json:"endpoint,omitempty"`
	// Remembered is true where session affinity chose: the client had this endpoint before.
	Remembered bool `json:"remembered,omitempty"`
	// Answer is the question for the answer to this packet.
	Answer *Next `json:"answer,omitempty"`
	// Datapath and Megaflow are as OVS prints them; of Datapath all passes that connection tracking divides.
	Datapath string `json:"datapathActions"`
	Megaflow string `json:"megaflow"`
	Raw      string `json:"raw"`
}

// Trace follows a packet through the bridge as it is now. Each step is told by the flow that stands there;
// where that is not the flow that was wanted, the step says so.
func (s *Subject) Trace(ctx context.Context, q Question) (Trace, error) {
	w, err := s.world()
	if err != nil {
		return Trace{}, err
	}
	p, err := resolve(w, q)
	if err != nil {
		return Trace{}, err
	}
	tracer, done, err := s.tracer(ctx)
	if err != nil {
		return Trace{}, err
	}
	defer done()
	return s.trace(ctx, tracer, w, p)
}

func (s *Subject) trace(ctx context.Context, tracer Tracer, w *flows.World, p packet) (Trace, error) {
	t, text, err := run(ctx, tracer, s.Bridge, w, p)
	if err != nil {
		return Trace{}, err
	}
	names := flows.NamesOf(w)
	out := Trace{Node: s.Node, What: p.words(w, names), Packet: p.spec(), Datapath: strings.Join(t.Passes, ", then "), Megaflow: t.Megaflow, Raw: text}
	suspect := false
	s.View(func(d *flows.Desired, _ *flows.World) {
		suspect = slices.ContainsFunc(t.Steps, func(x flows.Step) bool { return !x.Of(d) })
	})
	live := map[uint64]flows.Live{}
	if suspect { // else there is nothing that reading the whole table could add
		list, _, err := s.live(ctx)
		if err != nil {
			return Trace{}, err
		}
		for _, l := range list {
			live[l.Cookie] = l
		}
	}
	s.View(func(d *flows.Desired, _ *flows.World) {
		for _, x := range t.Steps {
			out.Steps = append(out.Steps, step(d, names, x, live))
		}
		out.choose(d, w, names, t)
	})
	if _, tunnel := t.Exits(); misled(w, text, tunnel) {
		out.Datapath += ", and the tunnel, which ofproto/trace leaves out when it resumes"
	}
	out.Verdict = judge(w, names, text, t, out.Steps)
	out.Next, out.Answer = onward(w, p, t, out.Verdict), answer(w, p, t, out.Verdict)
	for _, x := range out.Steps {
		if which := position(x.Choices); which != "" {
			out.Verdict.Sentence += " (" + which + ")"
		}
	}
	if out.Remembered {
		out.Verdict.Sentence += " (the endpoint that this client had before: session affinity)"
	}
	return out, nil
}

// choose says among which endpoints groups chose. A bucket that is not as it was compiled is an altered step.
func (out *Trace) choose(d *flows.Desired, w *flows.World, names *flows.Names, t flows.Trace) {
	to, translated := t.Translated()
	if translated {
		out.Endpoint = to.String()
		picks := func(x flows.Step) bool { return len(x.Picks) > 0 && !x.Aside() }
		out.Remembered = slices.ContainsFunc(t.Steps, remembering) && !slices.ContainsFunc(t.Steps, picks)
	}
	for i, x := range t.Steps {
		if x.Table == flows.Service && !x.Aside() && strings.HasPrefix(string(out.Steps[i].Owner), servicePrefix) {
			out.Service = out.Steps[i].Owner
		}
		if len(x.Picks) == 0 {
			continue
		}
		g, known := d.Group(x.Picks[0].Group)
		if !known {
			out.Steps[i].State = Altered
			out.Steps[i].Sentence += fmt.Sprintf("; ALTERED: nobody asks for group %d", x.Picks[0].Group)
			continue
		}
		out.Steps[i].Choices = choices(w, names, g, to)
		if !x.Aside() && translated && !slices.ContainsFunc(out.Steps[i].Choices, func(c Choice) bool { return c.Followed }) {
			out.Steps[i].State = Altered
			out.Steps[i].Sentence += fmt.Sprintf("; ALTERED: group %d chose %s, which is no endpoint that it should have", g.ID, to)
		}
	}
}

// step tells one step. live has the flows of the table if a step did not look like the wanted flow.
func step(d *flows.Desired, names *flows.Names, x flows.Step, live map[uint64]flows.Live) Step {
	out := Step{Table: x.Table.String(), Cookie: fmt.Sprintf("%#x", x.Cookie), Large: x.Aside()}
	if x.Cookie == 0 && x.Match == "No match." && x.Table == flows.Sticky {
		out.Sentence = "nothing is remembered of this client"
		return out
	}
	if x.Cookie == 0 && x.Match == "No match." {
		out.Sentence = "no flow matches, not even the table's own drop: drop"
		out.State = Altered
		return out
	}
	said := flows.Live{Table: x.Table, Priority: x.Priority, Cookie: x.Cookie, Match: x.Match, Actions: x.Did().String()}
	if l, ok := live[x.Cookie]; ok && l.Table == x.Table {
		said = l
	}
	f := explain(d, names, said)
	if x.Of(d) {
		f.State = ""
		if wanted, ok := d.Flow(x.Cookie); ok {
			f.Owner, f.Drop, f.Sentence = wanted.Owner, wanted.Drop, names.Explain(wanted)
		}
	}
	out.Owner, out.State, out.Drop, out.Sentence = f.Owner, f.State, f.Drop, f.Sentence
	return out
}

// judge says what became of the packet, by what OVS did and by the flow that decided.
func judge(w *flows.World, names *flows.Names, text string, t flows.Trace, steps []Step) Verdict {
	v := Verdict{Outcome: Dropped}
	last := -1
	for i, s := range steps {
		if s.Large {
			continue
		}
		last = i
		if s.Table == flows.Route.String() || v.Owner == "" {
			v.Owner, v.Table = s.Owner, s.Table
		}
	}
	if last < 0 {
		v.Sentence = "dropped: no table has taken it"
		return v
	}
	ports, tunnel := t.Exits()
	if len(ports) == 0 && !t.Answered() || t.Dropped() && !misled(w, text, tunnel) {
		v.Owner, v.Table = steps[last].Owner, steps[last].Table
		return dropped(v, steps[last], text)
	}
	var sent []string
	for _, port := range ports {
		switch name := names.Port(port); {
		case port == fmt.Sprint(flows.TunnelPort):
			v.Outcome, v.To = Tunnelled, nodeAt(w, tunnel)
			sent = append(sent, "through the tunnel to "+names.Address(tunnel))
		case port == fmt.Sprint(flows.GatewayPort):
			v.Outcome = ToHost
			sent = append(sent, "to the host")
		default:
			pod, isPod := strings.CutPrefix(name, "pod ")
			v.Outcome, v.To = Delivered, pod
			if !isPod {
				v.Outcome, v.To = Lost, ""
			}
			sent = append(sent, "to "+name)
		}
	}
	if slices.ContainsFunc(t.Steps, rejecting) {
		v.Outcome, v.To = Rejected, ""
		v.Owner, v.Table = steps[last].Owner, steps[last].Table
		v.Sentence = "rejected: " + nobody(v.Owner) + "; the host answers with a TCP reset or an ICMP error"
		return v
	}
	if len(ports) == 0 {
		return back(v, names, t)
	}
	v.Sentence = "forwarded " + strings.Join(sent, " and ")
	if strings.Contains(t.Datapath, "check_pkt_len(") {
		v.Sentence += "; packets larger than the MTU go to the host, which says so to their sender"
	}
	return v
}

// misled is true where ofproto/trace (Open vSwitch 3.1) says that a packet is not sent because it would be tunnelled to the
// node's own address, and it would not: when it resumes after connection tracking, it takes the far end that was
// chosen before for the address that the packet came to.
func misled(w *flows.World, text, tunnel string) bool {
	return tunnel != "" && tunnel != w.Tunnel.Local.String() && strings.Contains(text, ">> Not tunneling to our own address")
}

// Reasons of drops by OVS itself, for which there is no flow.
const (
	ToItself flows.Reason = "to-itself"
	PortGone flows.Reason = "port-gone"
)

func dropped(v Verdict, last Step, text string) Verdict {
	switch {
	case last.State != "":
		v.Sentence = fmt.Sprintf("dropped at %s by a flow that is %s: %s", last.Table, last.State, last.Sentence)
		v.Reason = flows.Reason(last.State)
	case last.Drop != "":
		v.Reason = last.Drop
		v.Sentence = fmt.Sprintf("dropped by %s (%s): %s", last.Owner, v.Reason, v.Reason.Sentence())
	case strings.Contains(text, "skipping output to input port"):
		v.Sentence, v.Reason = "dropped: it would leave by the port that it came from", ToItself
	default:
		v.Sentence, v.Reason = "dropped by Open vSwitch itself: the port that it would leave by is gone or down", PortGone
	}
	return v
}

// nodeAt names the node whose end of the tunnel an address is.
func nodeAt(w *flows.World, tunnel string) string {
	for name, n := range w.Peers {
		if a, ok := n.TunnelAddress(w.Tunnel.Local); ok && a.String() == tunnel {
			return name
		}
	}
	return ""
}

// remembering is a step that met what session affinity has learned of the client.
func remembering(s flows.Step) bool {
	return !s.Aside() && flows.Live{Table: s.Table, Cookie: s.Cookie}.Learned()
}

// rejecting is a step that hands the packet to the host to be rejected.
func rejecting(s flows.Step) bool {
	return !s.Aside() && slices.Contains(s.Actions, fmt.Sprintf("set_field:%s->eth_src", net.HardwareAddr(flows.RejectMAC())))
}

// nobody says why a Service rejects.
func nobody(o flows.Owner) string {
	if strings.HasPrefix(string(o), servicePrefix) {
		return "Service " + serviceName(o) + " has no endpoint that is ready (" + string(o) + ")"
	}
	return "no Service has that port at this address"
}

// back is the verdict on what leaves by the port that it came from: an answer of the bridge, a pod that is its own
// endpoint, or the host's.
func back(v Verdict, names *flows.Names, t flows.Trace) Verdict {
	end := t.End()
	reg0, _ := end.Get("reg0")
	bits, err := strconv.ParseUint(reg0, 0, 32)
	port, _ := end.Get("in_port")
	switch pod, isPod := strings.CutPrefix(names.Port(port), "pod "); {
	case err != nil || bits&flows.ReturnedBits == 0:
		v.Outcome, v.Sentence = Answered, "answered to the sender by the bridge itself"
	case isPod:
		v.Outcome, v.To, v.Sentence = Delivered, pod, "forwarded back to pod "+pod+", from which it came"
	default:
		v.Outcome, v.Sentence = ToHost, "forwarded back to the host, from which it came"
	}
	return v
}
