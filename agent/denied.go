package agent

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// denials logs what policies deny. It reads the flows that the datapath itself made of the first packet: no packet
// goes to the agent, none waits for it, and whether anybody looks makes no difference to forwarding. A datapath flow
// covers only packets with one verdict, so what it does not tell (a port that no policy looks at) does not matter to it.
type denials struct {
	daemon func() (*ovs.Daemon, error)
	loop   *loop
	log    logrus.FieldLogger

	seen       map[string]uint64 // packets by datapath flow at the last look
	events     prometheus.Counter
	suppressed prometheus.Counter
	denied     *prometheus.Desc
	unusable   *prometheus.Desc
	closed     *prometheus.Desc
}

// denialInterval is the time between two looks; an idle datapath flow lives 10 s (other_config:max-idle). In
// each, at most maxDenials events are logged: the others are counted.
const (
	denialInterval = time.Second
	maxDenials     = 20
)

func newDenials(d *denials) *denials {
	d.seen = map[string]uint64{}
	d.events = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "twill_policy_denial_events_total", Help: "Denials by policies that were logged.",
	})
	d.suppressed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "twill_policy_denial_events_suppressed_total", Help: "Denials by policies that were not logged because there were too many at once.",
	})
	d.denied = prometheus.NewDesc("twill_policy_denied_packets_total",
		"Packets that were denied since the flow was installed. With several policies that isolate a pod, each counts them.",
		[]string{"policy", "direction"}, nil)
	d.unusable = prometheus.NewDesc("twill_policies_unusable", "Policies of which something cannot be used; an Event at each says what.", nil, nil)
	d.closed = prometheus.NewDesc("twill_pods_closed", "Pods of this node that may neither send nor receive, because something about them or their policies is not known or cannot be used.", nil, nil)
	return d
}

// run looks until ctx ends.
func (d *denials) run(ctx context.Context) {
	tick := time.NewTicker(denialInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var w *flows.World
		d.loop.view(func(_ *flows.Desired, now *flows.World, _ Applied) { w = now })
		if w == nil || w.Policy == nil || w.Policy.Pods.Len() == 0 {
			clear(d.seen)
			continue
		}
		daemon, err := d.daemon()
		if err != nil {
			continue // the watch of the daemon says so
		}
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		text, err := daemon.Call(look, "dpctl/dump-flows")
		cancel()
		if err != nil {
			d.log.WithError(err).Debug("denied packets cannot be read")
			continue
		}
		d.look(w, text)
	}
}

// look logs what has been denied since the last look.
func (d *denials) look(w *flows.World, text string) {
	var judge *flows.Judge
	names := flows.NamesOf(w)
	now := make(map[string]uint64, len(d.seen))
	logged, suppressed := 0, 0
	for line := range strings.Lines(text) {
		x, ok := parseDenial(line)
		if !ok {
			continue
		}
		now[x.match] = x.packets
		before := d.seen[x.match]
		if x.packets == before || x.packets == 0 {
			continue
		}
		if x.packets < before {
			before = 0 // the flow was made anew
		}
		if judge == nil {
			judge = flows.NewJudge(w)
		}
		decision := judge.Decide(x.tuple)
		if decision.Allowed {
			continue // dropped for a reason that has nothing to do with policies
		}
		if logged == maxDenials {
			suppressed++
			continue
		}
		logged++
		d.log.WithFields(logrus.Fields{
			"policy": strings.Join(policiesOf(w, decision), " "), "direction": decision.Direction, "rule": ruleOf(decision),
			"src": names.Address(x.src), "dst": names.Address(x.dst), "proto": x.protocol, "port": x.port,
			"packets": x.packets - before, "why": decision.Words,
		}).Warn("denied by policy")
	}
	d.seen = now
	d.events.Add(float64(logged))
	d.suppressed.Add(float64(suppressed))
	if suppressed > 0 {
		d.log.WithField("suppressed", suppressed).Warn("more was denied by policies than is logged")
	}
}

// ruleOf names the rule that denied; it was none when a pod is isolated and no rule allows.
func ruleOf(d flows.Decision) string {
	if strings.HasPrefix(string(d.Owner), "clusternetworkpolicy/") {
		return string(d.Owner)
	}
	return "none"
}

// policiesOf are the policies behind a denial.
func policiesOf(w *flows.World, d flows.Decision) []string {
	if strings.HasPrefix(string(d.Owner), "clusternetworkpolicy/") {
		return []string{flows.PolicyOf(d.Owner)}
	}
	return isolating(w, d.Owner, d.Direction)
}

// isolating are the policies that isolate a pod of this node, or "closed".
func isolating(w *flows.World, pod flows.Owner, direction flows.Direction) []string {
	for _, a := range w.Pods[pod] {
		if w.Policy == nil {
			break
		}
		i, ok := w.Policy.Pods.Get(a.Namespace + "/" + a.Pod)
		switch {
		case !ok:
		case i.Closed != "":
			return []string{"closed"}
		case direction == flows.Egress:
			return owners(i.Egress)
		default:
			return owners(i.Ingress)
		}
	}
	return []string{"unknown"}
}

func owners(policies []string) []string {
	out := slices.Clone(policies)
	for i := range out {
		out[i] = "networkpolicy/" + out[i]
	}
	return out
}

// denial is one datapath flow that drops what had been through connection tracking.
type denial struct {
	match              string
	packets            uint64
	tuple              flows.Tuple
	src, dst, protocol string
	port               string
}

// parseDenial reads a line of dpctl/dump-flows (ovs-dpctl(8)). Values may have a mask; what is not matched is not
// there.
func parseDenial(line string) (denial, bool) {
	match, rest, ok := strings.Cut(strings.TrimSpace(line), ", packets:")
	if !ok || !strings.HasSuffix(rest, "actions:drop") || strings.Contains(match, "recirc_id(0)") {
		return denial{}, false
	}
	x := denial{match: match, protocol: "any", src: "any", dst: "any", port: "any"}
	count, _, _ := strings.Cut(rest, ",")
	x.packets, _ = strconv.ParseUint(count, 10, 64) // digits, or there is nothing to tell
	family, ip := "ipv4", ovs.SectionFields(match, "ipv4")
	x.tuple.Source, x.tuple.Destination = netip.IPv4Unspecified(), netip.IPv4Unspecified()
	if ip == nil {
		family, ip = "ipv6", ovs.SectionFields(match, "ipv6")
		x.tuple.Source, x.tuple.Destination = netip.IPv6Unspecified(), netip.IPv6Unspecified()
	}
	if ip == nil {
		return denial{}, false
	}
	x.protocol = family
	if v, ok := ip["src"]; ok {
		x.src, x.tuple.Source = v, address(v, x.tuple.Source)
	}
	if v, ok := ip["dst"]; ok {
		x.dst, x.tuple.Destination = v, address(v, x.tuple.Destination)
	}
	if v, ok := ip["proto"]; ok {
		n, _ := strconv.ParseUint(value(v), 0, 8) // as OVS prints it
		x.tuple.Protocol, x.protocol = uint8(n), v
	}
	for _, p := range []struct {
		name   string
		number uint8
	}{{"tcp", 6}, {"udp", 17}, {"sctp", 132}, {"icmp", 1}, {"icmpv6", 58}} {
		if p.number == x.tuple.Protocol {
			x.protocol = p.name
			if v, ok := ovs.SectionFields(match, p.name)["dst"]; ok {
				n, _ := strconv.ParseUint(value(v), 0, 16)
				x.tuple.Port, x.port = uint16(n), v
			}
		}
	}
	return x, true
}

// value is a value without its mask.
func value(v string) string {
	v, _, _ = strings.Cut(v, "/")
	return v
}

func address(v string, otherwise netip.Addr) netip.Addr {
	if a, err := netip.ParseAddr(value(v)); err == nil {
		return a
	}
	return otherwise
}

// Describe implements prometheus.Collector.
func (d *denials) Describe(ch chan<- *prometheus.Desc) {
	ch <- d.denied
	ch <- d.unusable
	ch <- d.closed
	d.events.Describe(ch)
	d.suppressed.Describe(ch)
}

// Collect implements prometheus.Collector.
func (d *denials) Collect(ch chan<- prometheus.Metric) {
	d.events.Collect(ch)
	d.suppressed.Collect(ch)
	closed, unusable := 0, 0
	d.loop.view(func(_ *flows.Desired, w *flows.World, _ Applied) {
		if w == nil || w.Policy == nil {
			return
		}
		unusable = len(w.Policy.Failures)
		for _, i := range w.Policy.Pods.All() {
			if i.Closed != "" {
				closed++
			}
		}
	})
	ch <- prometheus.MustNewConstMetric(d.unusable, prometheus.GaugeValue, float64(unusable))
	ch <- prometheus.MustNewConstMetric(d.closed, prometheus.GaugeValue, float64(closed))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	live, err := d.loop.bridge.Flows(ctx)
	if err != nil {
		return // left out while the bridge cannot be read, as all counters of flows
	}
	type key struct{ policy, direction string }
	sum := map[key]uint64{}
	d.loop.view(func(desired *flows.Desired, w *flows.World, _ Applied) {
		for _, l := range live {
			f, ok := desired.Flow(l.Cookie)
			if !ok || w == nil {
				continue
			}
			direction := flows.Ingress
			switch f.Drop {
			case flows.DropEgress, flows.DropDeniedEgress:
				direction = flows.Egress
			case flows.DropIngress, flows.DropDeniedIngress:
			default:
				continue
			}
			for _, p := range policiesOf(w, flows.Decision{Owner: f.Owner, Direction: direction}) {
				sum[key{p, string(direction)}] += l.Packets
			}
		}
	})
	for k, n := range sum {
		ch <- prometheus.MustNewConstMetric(d.denied, prometheus.CounterValue, float64(n), k.policy, k.direction)
	}
}
