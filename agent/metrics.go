package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/flows"
)

// metrics are the agent's own; each agent has its own registry, so that several fit into one process.
type metrics struct {
	registry *prometheus.Registry

	cniTotal    *prometheus.CounterVec
	cniDuration *prometheus.HistogramVec
	bundles     *prometheus.CounterVec
	bundleTime  prometheus.Histogram
	repaired    *prometheus.CounterVec
	cut         prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		cniTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "twill_cni_operations_total", Help: "CNI commands by outcome.",
		}, []string{"command", "result"}),
		cniDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "twill_cni_operation_duration_seconds", Help: "Time a CNI command took in the agent.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}, []string{"command"}),
		bundles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "twill_bundles_total", Help: "OpenFlow bundles sent, by outcome.",
		}, []string{"result"}),
		bundleTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "twill_bundle_duration_seconds", Help: "Time from the start of a pass to its bundle in force.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "twill_drift_repaired_total", Help: "Things that were not as the agent had left them, and were repaired.",
		}, []string{"what"}),
	}
	m.cut = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "twill_policy_connections_ended_total", Help: "Connections that were ended because policies began to forbid them.",
	})
	m.registry.MustRegister(m.cut, m.cniTotal, m.cniDuration, m.bundles, m.bundleTime, m.repaired)
	return m
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func (m *metrics) cni(command string, took time.Duration, err error) {
	m.cniTotal.WithLabelValues(command, outcome(err)).Inc()
	m.cniDuration.WithLabelValues(command).Observe(took.Seconds())
}

func (m *metrics) bundle(took time.Duration, err error) {
	m.bundles.WithLabelValues(outcome(err)).Inc()
	m.bundleTime.Observe(took.Seconds())
}

func (m *metrics) drift(what string, n int) {
	m.repaired.WithLabelValues(what).Add(float64(n))
}

// drifted is what drift has counted.
func (m *metrics) drifted(what string) int {
	var v dto.Metric
	if err := m.repaired.WithLabelValues(what).Write(&v); err != nil {
		return 0
	}
	return int(v.GetCounter().GetValue())
}

// observed are the metrics that are read off the agent's state when somebody asks for them.
type observed struct {
	usage        func() attach.Usage
	peers        func() []PeerStatus
	nodes        func() nodeView
	loop         *loop
	age          func() time.Duration
	ready        func() []string
	transactions func() uint64
	timeout      time.Duration

	desc descriptions
}

type descriptions struct {
	flows, drops, addresses, peers, refused, transactions, age, ready *prometheus.Desc
}

func newObserved(o observed) *observed {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	o.desc = descriptions{
		flows:        desc("twill_flows", "Flows in the bridge by table.", "table"),
		drops:        desc("twill_drops_total", "Packets dropped since the flow was installed, by reason.", "reason"),
		addresses:    desc("twill_addresses", "Addresses of this node's podCIDRs by state.", "cidr", "state"),
		peers:        desc("twill_peers", "Other nodes by whether they answer through the tunnel.", "state"),
		refused:      desc("twill_refused_claims", "podCIDRs and addresses that a Node may not have because another has them."),
		transactions: desc("twill_ovsdb_transactions_total", "Transactions committed to OVSDB."),
		age:          desc("twill_sync_age_seconds", "Time since the bridge was last found or brought in step."),
		ready:        desc("twill_ready", "1 while the agent is ready."),
	}
	return &o
}

// Describe implements prometheus.Collector.
func (o *observed) Describe(ch chan<- *prometheus.Desc) {
	d := o.desc
	for _, x := range []*prometheus.Desc{d.flows, d.drops, d.addresses, d.peers, d.refused, d.transactions, d.age, d.ready} {
		ch <- x
	}
}

// Collect implements prometheus.Collector. Flow counters are left out while the bridge cannot be read.
func (o *observed) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	d := o.desc
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	if tables, drops, err := o.loop.count(ctx); err == nil {
		for t, n := range tables {
			gauge(d.flows, float64(n), t.String())
		}
		for r, n := range drops {
			ch <- prometheus.MustNewConstMetric(d.drops, prometheus.CounterValue, float64(n), string(r))
		}
	}
	for _, r := range o.usage().Ranges {
		gauge(d.addresses, float64(r.Used), r.CIDR.String(), "used")
		gauge(d.addresses, float64(r.Cooling), r.CIDR.String(), "cooling")
		gauge(d.addresses, float64(r.Free), r.CIDR.String(), "free")
	}
	states := map[string]int{"up": 0, "down": 0, "unknown": 0}
	for _, p := range o.peers() {
		switch {
		case p.Reachable == nil:
			states["unknown"]++
		case *p.Reachable:
			states["up"]++
		default:
			states["down"]++
		}
	}
	for s, n := range states {
		gauge(d.peers, float64(n), s)
	}
	gauge(d.refused, float64(len(o.nodes().refused)))
	ch <- prometheus.MustNewConstMetric(d.transactions, prometheus.CounterValue, float64(o.transactions()))
	gauge(d.age, o.age().Seconds())
	ready := 0.0
	if len(o.ready()) == 0 {
		ready = 1
	}
	gauge(d.ready, ready)
}

// count reads the live table: flows by table, dropped packets by reason. Reasons are known for flows of ours.
func (l *loop) count(ctx context.Context) (map[flows.Table]int, map[flows.Reason]uint64, error) {
	live, err := l.bridge.Flows(ctx)
	if err != nil {
		return nil, nil, err
	}
	tables, drops := map[flows.Table]int{}, map[flows.Reason]uint64{}
	l.view(func(d *flows.Desired, _ *flows.World, _ Applied) {
		for _, f := range live {
			tables[flows.Table(f.Table)]++
			if wanted, ok := d.Flow(f.Cookie); ok && wanted.Drop != "" {
				drops[wanted.Drop] += f.Packets
			}
		}
	})
	return tables, drops, nil
}
