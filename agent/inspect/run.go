package inspect

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
)

// mostRecirculations is how often a packet is sent through connection tracking at most; each time OVS is told what
// it finds there.
const mostRecirculations = 6

// mostHashes is how many values of a dp_hash are tried: Open vSwitch 3.1 tells no more apart.
const mostHashes = 256

// run asks OVS for the way of a packet. What connection tracking finds is what it would for the first packet of a connection
// or, for a reply, for the answer to that: ofproto/trace does not look there. A group that chooses by a hash of the
// datapath gets one after the other until it chooses the wanted endpoint.
func run(ctx context.Context, tracer Tracer, bridge string, w *flows.World, p packet) (flows.Trace, string, error) {
	var finds []string
	if p.Reply {
		for range mostRecirculations {
			finds = append(finds, "--ct-next", "trk,est,rpl")
		}
	}
	seen := map[string]bool{}
	for hash := 1; hash <= mostHashes; hash++ {
		spec := p.spec()
		if w.Services != nil && !p.Reply {
			spec += fmt.Sprintf(",dp_hash=%d", hash)
		}
		text, err := tracer.Trace(ctx, bridge, spec, finds...)
		if err != nil {
			return flows.Trace{}, "", err
		}
		t, err := flows.ParseTrace(text, bridge)
		if err != nil {
			return flows.Trace{}, "", err
		}
		got, translated := t.Translated()
		if !translated && p.pod != nil && strings.Contains(text, "check_pkt_len(") && slices.ContainsFunc(t.Steps, translating) {
			return t, text, errUntold
		}
		if !p.endpoint.IsValid() || got == p.endpoint {
			return t, text, nil
		}
		seen[got.String()] = true
		if !translated {
			return t, "", bad("--endpoint %s: the packet meets no Service that has endpoints; leave it away to see what becomes of it", p.endpoint)
		}
		if !strings.Contains(text, "dp_hash=") || !hashed(text) {
			return t, "", bad("--endpoint %s: the bridge gives %s always the endpoint %s (session affinity, or too many endpoints to choose); leave it away", p.endpoint, p.src, got)
		}
	}
	return flows.Trace{}, "", bad("--endpoint %s: the bridge chooses only among %s", p.endpoint, strings.Join(sorted(seen), ", "))
}

// errUntold is for what ofproto/trace (Open vSwitch 3.1) cannot tell: where check_pkt_larger divides packets, it
// simulates the translation for one of the two ways only.
var errUntold = bad("%s: ask for the endpoint's address, or from another pod; a restart of the pod ends this", UntoldReason)

// UntoldReason is why a packet cannot be followed.
const UntoldReason = "the pod's interface is from before the MTU shrank, and ofproto/trace does not follow such a pod's packet to the endpoint of a Service"

// translating is a step that translates to an endpoint.
func translating(s flows.Step) bool {
	return !s.Aside() && slices.ContainsFunc(s.Actions, func(a string) bool { return strings.Contains(a, "nat(dst=") })
}

// hashed tells whether the choice depends on the hash of the datapath: then the megaflow matches it.
func hashed(text string) bool {
	for line := range strings.Lines(text) {
		if megaflow, ok := strings.CutPrefix(line, "Megaflow: "); ok && strings.Contains(megaflow, "dp_hash=") {
			return true
		}
	}
	return false
}

func sorted(set map[string]bool) []string {
	var out []string
	for s := range set {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// marked is where a masquerade leaves its mark.
var marked = regexp.MustCompile(`set_field:(0x[0-9a-f]+)->ct_mark`)

// mark is what connection tracking remembers of the packet's masquerade: what it was asked with, if it gets none here.
func mark(p packet, t flows.Trace) uint32 {
	for _, s := range t.Steps {
		for _, a := range s.Actions {
			if m := marked.FindStringSubmatch(a); m != nil && !s.Aside() {
				n, err := strconv.ParseUint(m[1], 0, 31)
				if err == nil {
					return uint32(n)
				}
			}
		}
	}
	return p.Mark
}

// onward is the question for where the packet goes on: the node at the far end of the tunnel or, for a node port of
// this node, the host, which translates and sends it back into the bridge.
func onward(w *flows.World, p packet, t flows.Trace, v Verdict) *Next {
	q := at(p, t)
	q.Mark = mark(p, t)
	switch {
	case v.Outcome == Tunnelled && v.To != "":
		q.From = "node/" + w.Node.Name
		return &Next{Node: v.To, Question: q}
	case v.Outcome == ToHost && !p.Reply && (p.pod != nil || p.peer != nil):
		to, err := netip.ParseAddr(q.To)
		if err != nil || !ofHost(w.Node, to) || atNodePort(w, q.Proto, q.Port) == nil {
			return nil
		}
		q.From = "host"
		return &Next{Node: w.Node.Name, Question: q}
	}
	return nil
}

// answer is the question for the answer to a packet that arrived here; nil for one that did not.
func answer(w *flows.World, p packet, t flows.Trace, v Verdict) *Next {
	if p.Reply {
		return nil
	}
	q := at(p, t)
	q.Reply, q.Mark = true, mark(p, t)
	q.Source, q.To = q.To, q.Source
	q.Port, q.SourcePort = q.SourcePort, q.Port
	switch v.Outcome {
	case Delivered:
		q.From = v.To
	case ToHost:
		q.From = "host"
	case Tunnelled: // as it comes back from there, for whoever cannot ask there
		q.From = "node/" + v.To
	default:
		return nil
	}
	return &Next{Node: w.Node.Name, Question: q}
}

// at is the packet as it left the bridge.
func at(p packet, t flows.Trace) Question {
	q := p.Question
	q.Endpoint = ""
	q.Source, q.To = p.src.String(), p.dst.String()
	end := t.End()
	take := func(into *string, names ...string) {
		for _, n := range names {
			if value, ok := end.Get(n); ok {
				*into = value
			}
		}
	}
	take(&q.Source, "nw_src", "ipv6_src")
	take(&q.To, "nw_dst", "ipv6_dst")
	port := func(into *uint16, name string) {
		var text string
		take(&text, name)
		if n, err := strconv.ParseUint(text, 10, 16); err == nil {
			*into = uint16(n)
		}
	}
	port(&q.SourcePort, "tp_src")
	port(&q.Port, "tp_dst")
	return q
}
