package inspect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// tuple is a packet as policies see it: with the endpoint that a Service chose, before any masquerade.
func tuple(p packet, endpoint netip.AddrPort) flows.Tuple {
	t := flows.Tuple{Source: p.src, Destination: p.dst, Port: p.Port, Protocol: flows.ProtocolNumber(p.Proto)}
	if endpoint.IsValid() {
		t.Destination, t.Port = endpoint.Addr(), endpoint.Port()
	}
	if t.Protocol == 0 {
		t.Protocol, t.Port = 1, 0
		if t.Destination.Is6() {
			t.Protocol = 58
		}
	}
	return t
}

// byPolicy tells whether policies drop for this reason.
func byPolicy(r flows.Reason) bool {
	return slices.Contains([]flows.Reason{flows.DropIngress, flows.DropEgress, flows.DropDeniedIngress, flows.DropDeniedEgress, flows.DropClosed}, r)
}

// reasonOf is the reason of the drop that a decision leads to.
func reasonOf(d flows.Decision) flows.Reason {
	switch rule := !strings.HasPrefix(string(d.Owner), "pod/"); {
	case d.Closed:
		return flows.DropClosed
	case rule && d.Direction == flows.Egress:
		return flows.DropDeniedEgress
	case rule:
		return flows.DropDeniedIngress
	case d.Direction == flows.Egress:
		return flows.DropEgress
	}
	return flows.DropIngress
}

// opinion is what policies say of a packet, from the objects.
type opinion struct {
	judge *flows.Judge
	tuple flows.Tuple
	flows.Decision
}

func opinionOf(w *flows.World, p packet, endpoint netip.AddrPort) opinion {
	o := opinion{judge: flows.NewJudge(w), tuple: tuple(p, endpoint)}
	o.Decision = o.judge.Decide(o.tuple)
	return o
}

// policies says in words why policies drop what they drop, and what would change it.
func (r *reasoner) policies(o opinion) (because, remedy string) {
	because = o.Words
	misses := o.judge.Misses(o.tuple, o.Decision, r.names)
	isolating := o.judge.Isolating(o.tuple, o.Decision)
	peer := r.names.Address(o.tuple.Source.String())
	verb := "from"
	if o.Direction == flows.Egress {
		peer, verb = r.names.Address(o.tuple.Destination.String()), "to"
	}
	switch {
	case o.Closed:
		return because, "what the sentence names has to be there or to be valid: `twill status`, and the Events of the policy and of the pod"
	case !strings.HasPrefix(string(o.Owner), "pod/"):
		return because, fmt.Sprintf("%s has to be changed or removed, or a rule before it has to accept this", flows.PolicyOf(o.Owner))
	case len(misses) == 0:
		because += "; no rule of them speaks of this direction"
	case len(misses) == 1:
		because += "; their only rule does not match: " + misses[0]
	default:
		because += fmt.Sprintf("; none of their %d rules matches: %s", len(misses), strings.Join(misses, "; "))
	}
	var names []string
	for _, i := range isolating {
		names = append(names, strings.TrimPrefix(string(i), "networkpolicy/"))
	}
	what := portWord(o.tuple)
	return because, fmt.Sprintf("an %s rule of one of %s, or of another NetworkPolicy for the pod, has to allow %s %s %s", o.Direction, strings.Join(names, ", "), what, verb, peer)
}

func portWord(t flows.Tuple) string {
	for name, n := range map[string]uint8{"TCP port": 6, "UDP port": 17, "SCTP port": 132} {
		if t.Protocol == n {
			return fmt.Sprintf("%s %d", name, t.Port)
		}
	}
	return "ICMP (a rule without ports)"
}

// causes are the rules and policies without any one of which the decision would be another.
func (o opinion) causes() []flows.Owner {
	var candidates, out []flows.Owner
	if o.Owner != "" && !strings.HasPrefix(string(o.Owner), "pod/") {
		candidates = append(candidates, o.Owner, flows.Owner(flows.PolicyOf(o.Owner)))
	}
	candidates = append(candidates, o.judge.Isolating(o.tuple, o.Decision)...)
	for _, c := range candidates {
		if !slices.Contains(out, c) && o.judge.Without(c).Decide(o.tuple).Allowed != o.Allowed {
			out = append(out, c)
		}
	}
	return out
}
