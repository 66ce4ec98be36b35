package preview

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// side judges with the policies of before, or of after, as the nodes of some pods would.
type side struct {
	policy *flows.Policy
	judge  *flows.Judge
	// rules are those that a subject is part of, ports those that a rule mentions: both by number.
	rules map[uint32]map[uint32]bool
	ports map[uint32][]flows.Condition
}

// resolve is what policies come to when only the pods in judged are looked at as their subjects.
func (x *examination) resolve(policies map[string]*policy.Policy, judged map[int]bool) *flows.World {
	ix := policy.NewIndex()
	for _, n := range x.objects.Namespaces {
		ix.SetNamespace(n.Name, n)
	}
	for _, n := range x.objects.Nodes {
		ix.SetNode(n.Name, &policy.Node{Name: n.Name, Labels: policy.Labels(n.Labels), Addresses: n.Addresses})
	}
	local := map[string]policy.Local{}
	w := &flows.World{Pods: map[flows.Owner][]flows.Attachment{}}
	for _, e := range x.list {
		for _, p := range e.shown {
			ix.SetPod(p.Key(), p)
			if !judged[e.id] {
				continue
			}
			local[p.Key()] = policy.Local{Namespace: p.Namespace, Pod: p.Name, UID: p.UID, Addresses: p.Addresses}
			a := flows.Attachment{Namespace: p.Namespace, Pod: p.Name, IfName: "eth0", OFPort: uint32(len(local)), Addresses: p.Addresses}
			w.Pods[a.Owner()] = append(w.Pods[a.Owner()], a)
		}
	}
	ix.SetLocal(local)
	for owner, p := range policies {
		ix.SetPolicy(owner, p)
	}
	w.Policy = ix.Policy()
	return w
}

func (x *examination) side(policies map[string]*policy.Policy, judged map[int]bool) *side {
	w := x.resolve(policies, judged)
	s := &side{policy: w.Policy, judge: flows.NewJudge(w), rules: map[uint32]map[uint32]bool{}, ports: map[uint32][]flows.Condition{}}
	for _, c := range w.Policy.Clauses.All() {
		for _, p := range c.Parts {
			switch c.Kind {
			case flows.Subject:
				if s.rules[c.Identity] == nil {
					s.rules[c.Identity] = map[uint32]bool{}
				}
				s.rules[c.Identity][p.ID] = true
			case flows.Port:
				s.ports[p.ID] = append(s.ports[p.ID], c.Condition)
			}
		}
	}
	return s
}

// points are the ports from which on a verdict about a pod may be another, by protocol.
func (s *side) points(pod string, into map[uint8]map[uint16]bool) {
	i, ok := s.policy.Pods.Get(pod)
	if !ok {
		return
	}
	for id := range s.rules[i.Identity] {
		for _, c := range s.ports[id] {
			into[c.Protocol][c.Port&c.Mask] = true
			if last := c.Port | ^c.Mask; last < 65535 {
				into[c.Protocol][last+1] = true
			}
		}
	}
}

// Verdict is what policies say of a connection, and which of them.
type Verdict struct {
	Allowed bool `json:"allowed"`
	// By is the rule that decides, or what isolates a pod; empty where no policy has a say.
	By string `json:"by,omitempty"`
}

func (v Verdict) String() string {
	word := "dropped"
	if v.Allowed {
		word = "allowed"
	}
	if v.By != "" {
		word += " by " + v.By
	}
	return word
}

func (s *side) verdict(t flows.Tuple) Verdict {
	d := s.judge.Decide(t)
	v := Verdict{Allowed: d.Allowed, By: string(d.Owner)}
	pod, ok := strings.CutPrefix(v.By, "pod/")
	if !ok {
		return v
	}
	i, _ := s.policy.Pods.Get(pod)
	switch {
	case i.Closed != "":
		v.By = i.Closed
	case d.Direction == flows.Egress:
		v.By = fmt.Sprintf("%s (egress: no rule allows it)", strings.Join(i.Egress, ", "))
	default:
		v.By = fmt.Sprintf("%s (ingress: no rule allows it)", strings.Join(i.Ingress, ", "))
	}
	return v
}

// protocols are those that rules can name, and another that stands for all others.
var protocols = [...]struct {
	number uint8
	name   string
}{{6, "tcp"}, {17, "udp"}, {132, "sctp"}, {1, "other"}}

// span is a range of ports whose verdict changes, all of a protocol.
type span struct {
	protocol      string
	first, last   uint16
	before, after Verdict
}

// judged compares the two sides for a pair of ends and a family.
func judged(before, after *side, from, to netip.Addr, pods []string) (out []span) {
	points := map[uint8]map[uint16]bool{}
	for _, p := range protocols {
		points[p.number] = map[uint16]bool{0: true}
	}
	for _, p := range pods {
		before.points(p, points)
		after.points(p, points)
	}
	for _, p := range protocols {
		list := slices.Sorted(maps.Keys(points[p.number]))
		for i, first := range list {
			t := flows.Tuple{Source: from, Destination: to, Protocol: p.number, Port: first}
			last := uint16(65535)
			if i+1 < len(list) {
				last = list[i+1] - 1
			}
			x := span{p.name, first, last, before.verdict(t), after.verdict(t)}
			x.before.By = "" // who decided before is no part of the change
			if x.before.Allowed == x.after.Allowed {
				continue
			}
			if n := len(out); n > 0 && out[n-1].protocol == p.name && out[n-1].last+1 == first && out[n-1].before == x.before && out[n-1].after == x.after {
				out[n-1].last = last
				continue
			}
			out = append(out, x)
		}
	}
	return out
}
