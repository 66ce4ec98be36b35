package inspect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/flows"
)

// Verification compares what is installed with what is wanted.
type Verification struct {
	Node string `json:"node"`
	// Wanted and Live count flows, Learned those that packets left (session affinity), which are no part of Live.
	Wanted  int `json:"wanted"`
	Live    int `json:"live"`
	Learned int `json:"learned,omitempty"`
	// Flows are the flows of which the bridge and the compiled set disagree.
	Flows []flows.Difference `json:"flows"`
	// Groups are those of groups, WantedGroups counts the groups that there should be.
	Groups       []flows.Difference `json:"groups"`
	WantedGroups int                `json:"wantedGroups"`
	// Ungrouped says why no groups were compared; empty if they were.
	Ungrouped string `json:"ungrouped,omitempty"`
	// Sampled counts packets that were asked about; Verdicts are those with which the bridge does
	// something else than the objects say.
	Sampled  int              `json:"sampled"`
	Verdicts []VerdictFailure `json:"verdicts"`
	// Untold counts packets that were left out because ofproto/trace cannot follow them: of pods from before the MTU
	// shrank, for a Service. UntoldPackets are the first ones, in words.
	Untold        int      `json:"untold,omitempty"`
	UntoldPackets []string `json:"untoldPackets,omitempty"`
	// Untraced says why no packets were sampled; empty if they were.
	Untraced string `json:"untraced,omitempty"`
	// Behind says why the bridge may lawfully differ for the moment.
	Behind string `json:"behind,omitempty"`
}

// VerdictFailure is one packet that the bridge treats otherwise than the objects say.
type VerdictFailure struct {
	What     string `json:"what"`
	Packet   string `json:"packet"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

// mostUntold is how many packets that could not be judged are named.
const mostUntold = 5

// Differences is how many were found.
func (v Verification) Differences() int { return len(v.Flows) + len(v.Groups) + len(v.Verdicts) }

// Verify reads the whole table back and compares every flow, then asks about a sample of packets, chosen by
// seed, what the bridge does with them and what it should.
func (s *Subject) Verify(ctx context.Context, samples int, seed uint64) (Verification, error) {
	w, err := s.world()
	if err != nil {
		return Verification{}, err
	}
	live, _, err := s.live(ctx)
	if err != nil {
		return Verification{}, err
	}
	groups, err := s.liveGroups(ctx)
	ungrouped := errors.Is(err, errNoGroups)
	if err != nil && !ungrouped {
		return Verification{}, err
	}
	v := Verification{Node: s.Node, Live: len(live), Groups: []flows.Difference{}, Verdicts: []VerdictFailure{}}
	for _, l := range live {
		if l.Learned() {
			v.Live, v.Learned = v.Live-1, v.Learned+1
		}
	}
	s.View(func(d *flows.Desired, _ *flows.World) {
		v.Wanted = d.Len()
		v.Flows = d.Compare(live)
		v.WantedGroups = len(d.Groups())
		if differ := d.CompareGroups(groups); len(differ) > 0 && !ungrouped {
			v.Groups = differ
		}
	})
	if ungrouped {
		v.Ungrouped = err.Error()
	}
	if err := s.Behind(); err != nil {
		v.Behind = err.Error()
	}
	if samples == 0 {
		v.Untraced = "no samples were asked for"
		return v, nil
	}
	tracer, done, err := s.tracer(ctx)
	if err != nil {
		v.Untraced = err.Error()
		return v, nil
	}
	defer done()
	names, expectation := flows.NamesOf(w), expectationOf(w)
	byCookie := make(map[uint64]flows.Live, len(live))
	for _, l := range live {
		byCookie[l.Cookie] = l
	}
	for _, q := range sample(w, samples, seed) {
		p, err := resolve(w, q)
		if err != nil {
			return v, fmt.Errorf("a sample of our own making: %w", err)
		}
		t, text, err := run(ctx, tracer, s.Bridge, w, p)
		if errors.Is(err, errUntold) {
			if v.Untold++; v.Untold <= mostUntold {
				v.UntoldPackets = append(v.UntoldPackets, p.words(w, names))
			}
			continue
		}
		if err != nil {
			return v, err
		}
		var got Verdict
		s.View(func(d *flows.Desired, _ *flows.World) {
			var steps []Step
			for _, x := range t.Steps {
				steps = append(steps, step(d, names, x, byCookie))
			}
			got = judge(w, names, text, t, steps)
		})
		v.Sampled++
		endpoint, _ := t.Translated()
		if want := expectation.of(p, endpoint); want.short() != got.short() {
			v.Verdicts = append(v.Verdicts, VerdictFailure{What: p.words(w, names), Packet: p.spec(), Expected: want.short(), Got: got.short() + ": " + got.Sentence})
		}
	}
	return v, nil
}

// sample picks n packets: each sender to each kind of destination by each protocol, shuffled by seed.
func sample(w *flows.World, n int, seed uint64) []Question {
	r := rand.New(rand.NewPCG(seed, 0))
	var from []Question
	var to []netip.Addr
	for _, o := range slices.Sorted(maps.Keys(w.Pods)) {
		a := w.Pods[o][len(w.Pods[o])-1]
		to = append(to, a.Addresses...)
		if len(w.Pods[o]) > 1 || a.IfName != "eth0" {
			continue // what is asked for by a pod's name is its first interface
		}
		for _, addr := range a.Addresses {
			from = append(from, Question{From: a.Namespace + "/" + a.Pod, Source: addr.String()})
		}
		from = append(from, Question{From: a.Namespace + "/" + a.Pod, Source: "203.0.113.250"}) // spoofed
	}
	for _, a := range gateways(w.Node) {
		from = append(from, Question{From: "host", Source: a.String()})
	}
	to = append(to, hostSources(w)...)
	for _, c := range w.Node.PodCIDRs {
		to = append(to, unused(w, c))
	}
	for _, name := range slices.Sorted(maps.Keys(w.Peers)) {
		n := w.Peers[name]
		if _, ok := n.TunnelAddress(w.Tunnel.Local); !ok {
			continue
		}
		to = append(to, n.Addresses...)
		for _, c := range n.PodCIDRs {
			a := unused(w, c)
			to = append(to, a)
			from = append(from, Question{From: "node/" + name, Source: a.String()})
		}
	}
	for _, a := range []string{"203.0.113.5", "2001:db8:ffff::5", "224.0.0.251", "ff02::fb", "255.255.255.255"} {
		to = append(to, netip.MustParseAddr(a))
	}
	services, l4s := serviceSamples(w)
	to = append(to, services...)
	ports := append(l4s, []Question{{Proto: "tcp", Port: 80, SourcePort: 40000}, {Proto: "udp", Port: 53, SourcePort: 40000}, {Proto: "udp", Port: w.Tunnel.Port, SourcePort: 40000}, {Proto: "icmp"}}...)
	var out []Question
	for tries := 0; len(from) > 0 && len(out) < n && tries < 20*n; tries++ {
		q, dst, l4 := from[r.IntN(len(from))], to[r.IntN(len(to))], ports[r.IntN(len(ports))]
		src := netip.MustParseAddr(q.Source)
		if !dst.IsValid() || src.Is4() != dst.Is4() {
			continue
		}
		q.To, q.Proto, q.Port, q.SourcePort = dst.String(), l4.Proto, l4.Port, l4.SourcePort
		out = append(out, q)
	}
	return out
}

// unused is an address near the end of a range, or 250 addresses into it, that neither a pod of this node nor a
// gateway has; the zero Addr if there is none.
func unused(w *flows.World, c netip.Prefix) netip.Addr {
	a := flows.Gateway(c)
	for range 250 {
		if next := a.Next(); c.Contains(next) {
			a = next
		}
	}
	for ; a.IsValid() && c.Contains(a); a = a.Prev() {
		if podAt(w, a) == nil && !contains(gateways(w.Node), a) {
			return a
		}
	}
	return netip.Addr{}
}
