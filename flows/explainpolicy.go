package flows

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// policyNames are the names behind the numbers of policies.
type policyNames struct {
	rules      map[uint32]Owner
	identities map[uint32][]string
	isolated   map[string]*Isolation // by the name of the port
}

func policyNamesOf(w *World) policyNames {
	n := policyNames{rules: map[uint32]Owner{}, identities: map[uint32][]string{}, isolated: map[string]*Isolation{}}
	if w == nil || w.Policy == nil {
		return n
	}
	for _, r := range w.Policy.Rules.All() {
		for _, id := range r.IDs {
			n.rules[id] = r.Owner
		}
	}
	who := map[uint32]map[string]bool{}
	is := func(identity uint32, pod string) {
		if who[identity] == nil {
			who[identity] = map[string]bool{}
		}
		who[identity][pod] = true
	}
	for pod, p := range w.Policy.Peers.All() {
		is(p.Identity, pod)
	}
	for pod, i := range w.Policy.Pods.All() {
		is(i.Identity, pod)
	}
	for identity, pods := range who {
		for pod := range pods {
			n.identities[identity] = append(n.identities[identity], pod)
		}
		slices.Sort(n.identities[identity])
	}
	for _, list := range w.Pods {
		for _, a := range list {
			if i := w.isolation(a); i != nil {
				n.isolated[podName(a)] = i
			}
		}
	}
	return n
}

// shownPods is how many pods of an identity a sentence names.
const shownPods = 3

func (n *policyNames) identity(value string) string {
	v, err := strconv.ParseUint(value, 0, 32)
	pods := n.identities[uint32(v)]
	switch {
	case err != nil || len(pods) == 0:
		return "pods of identity " + strings.TrimPrefix(value, "0x")
	case len(pods) == 1:
		return "pod " + pods[0]
	case len(pods) > shownPods:
		return fmt.Sprintf("pods %s and %d more like them", strings.Join(pods[:shownPods], ", "), len(pods)-shownPods)
	}
	return "pods " + strings.Join(pods, ", ")
}

func (n *policyNames) rule(id string) string {
	v, err := strconv.ParseUint(id, 10, 32)
	if owner, ok := n.rules[uint32(v)]; ok && err == nil {
		return string(owner)
	}
	return "rule " + id + " (no longer in force)"
}

// matchWords says what a field of a policy's flow selects; ok is false for other fields.
func (n *Names) policyMatchWords(f Field) (words string, ok bool) {
	p := &n.policy
	switch f.Name {
	case fromSubject:
		if f.Value == isTracked {
			return "sent by a pod that policies select", true
		}
		return "sent by " + p.identity(f.Value), true
	case toSubject:
		if f.Value == isTracked {
			return "for a pod that policies select", true
		}
		return "for " + p.identity(f.Value), true
	case toPeer:
		return "to " + p.identity(f.Value), true
	case fromPeer:
		return "from " + p.identity(f.Value), true
	case "reg1":
		return "for " + n.Port(f.Value), true
	case "conj_id":
		return "that meet every condition of " + p.rule(f.Value), true
	case "ct_state":
		return ctWords(f.Value), true
	case "tcp_flags":
		return "that open a connection", true
	case "tp_dst":
		if port, mask, masked := strings.Cut(f.Value, "/"); masked {
			first, err1 := strconv.ParseUint(port, 0, 16)
			m, err2 := strconv.ParseUint(mask, 0, 16)
			if err1 == nil && err2 == nil {
				return fmt.Sprintf("to ports %d–%d", first, first|^m&0xffff), true
			}
		}
	}
	return "", false
}

func ctWords(value string) string {
	switch value {
	case "+inv+trk":
		return "that connection tracking cannot make sense of"
	case "+rel+trk":
		return "about a connection that was allowed (ICMP errors)"
	case "+est+rpl+trk":
		return "that answer within a connection that was allowed"
	case "+new+trk":
		return "that belong to no known connection"
	case "-new+trk":
		return "of a known connection"
	case "+est-rpl+trk":
		return "of a known connection, from who opened it"
	case "+rel-rpl+trk":
		return "about answers of a known connection (ICMP errors)"
	case "+new+trk+dnat":
		return "of a known connection that nobody has answered"
	}
	return "of connection state " + value
}

// policyActionWords says what an action of a policy's flow does; ok is false for others.
func (n *Names) policyActionWords(a Action) (words string, ok bool) {
	switch a.Verb {
	case "conjunction":
		id, part, _ := strings.Cut(strings.Trim(a.Arg, "()"), ",")
		number, of, _ := strings.Cut(part, "/")
		return fmt.Sprintf("meet condition %s of %s of %s", number, of, n.policy.rule(id)), true
	case "ct":
		if strings.Contains(a.Arg, fmt.Sprintf("zone=%d", PolicyZone)) {
			if strings.Contains(a.Arg, "commit") {
				return "remember the connection", true
			}
			return fmt.Sprintf("look the connection up, continue at %s", Sender), true
		}
	case "set_field":
		value, field, _ := strings.Cut(a.Arg, "->")
		switch {
		case field == fromSubject || field == toSubject:
			if value == "0" {
				return "no policy of its own has a say", true
			}
			return "have its policies looked at", true
		case field == toPeer:
			return "know the destination as " + n.policy.identity(value), true
		case field == fromPeer:
			return "know the source as " + n.policy.identity(value), true
		case field == "reg0" && value == allowedBit:
			return "mark as allowed by a rule", true
		}
	}
	return "", false
}

// isolatedBy names the policies behind the drop at the end of a pod's isolation.
func (n *Names) isolatedBy(f Flow) string {
	port, ok := f.Match.Get("in_port")
	if !ok {
		port, _ = f.Match.Get("reg1")
	}
	i := n.policy.isolated[n.Port(port)]
	if i == nil {
		return ""
	}
	switch f.Drop {
	case DropIngress:
		return " (isolated by " + strings.Join(i.Ingress, ", ") + ")"
	case DropEgress:
		return " (isolated by " + strings.Join(i.Egress, ", ") + ")"
	case DropClosed:
		return " (" + i.Closed + ")"
	}
	return ""
}
