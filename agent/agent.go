package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Agent is one running agent.
type Agent struct {
	cfg     Config
	set     settings
	version string
	log     logrus.FieldLogger
	meter   *metrics

	source   source.Source
	db       *ovs.DB
	loop     *loop
	plumbing *plumbing
	daemon   *daemonWatch
	pods     *attach.Manager
	policies *policies
	cutter   *cutter
	denials  *denials
	peers    *peers
	services *services
	rounds   *rounds
	hygiene  *hygiene
	healths  *healthPorts
	health   *health
	recent   recentLog

	mu     sync.Mutex
	nodes  nodeView
	instep time.Time
}

// Run runs an agent until ctx ends. It returns an error only for what no waiting can mend: a wrong
// configuration, a bridge that belongs to somebody else. Everything that may come right by itself (Open
// vSwitch, the API server, the Node object) is waited for and named by readiness meanwhile.
func Run(ctx context.Context, cfg Config, version string) error {
	set, err := cfg.resolve()
	if err != nil {
		return err
	}
	a := &Agent{cfg: cfg, set: set, version: version, meter: newMetrics()}
	a.log = a.recent.attach(cfg.NewLogger())
	a.health = newHealth()
	a.logConfiguration()
	if err := a.build(ctx); err != nil {
		return err
	}
	defer a.db.Close()
	return a.supervise(ctx)
}

// build connects and makes the parts; nothing acts yet.
func (a *Agent) build(ctx context.Context) error {
	var err error
	a.policies = newPolicies(a.log)
	if a.source, err = a.newSource(); err != nil {
		return err
	}
	a.policies.follow(a.source, a.cfg.Manifests != "")
	if a.db, err = a.dial(ctx); err != nil {
		return err
	}
	sw := ovs.NewSwitch(a.cfg.Bridge, a.cfg.OVSRunDir, ovs.System())
	sw.KeepConnected(ctx)
	a.rounds = &rounds{wake: func() { a.loop.kick("affinity") }}
	a.services = newServices(a.cfg.ServiceProxy == "on", a.source, a.set.serviceCIDRs)
	prober, err := host.NewProber(a.log)
	if err != nil {
		return err
	}
	a.peers = newPeers(&peers{probe: prober.Probe, teach: a.teach, interval: a.cfg.ProbeInterval, log: a.log})
	a.plumbing = newPlumbing(&plumbing{
		cfg: &a.cfg, set: a.set, db: a.db, nodes: a.readNodes, services: a.services.now, log: a.log, meter: a.meter,
		repair:     func(ctx context.Context) ([]string, error) { return a.pods.Repair(ctx) },
		largestPod: func() int { return a.pods.LargestMTU() },
		done:       func(cause string) { a.loop.kick(cause) },
	})
	a.loop = newLoop(&loop{world: a.world, bridge: sw, log: a.log, seen: func(before, now *flows.World) { a.applied(before, now); a.hygiene.follow(before, now) }, meter: a.meter, refusedFlow: a.refused})
	a.daemon = &daemonWatch{
		bridge: a.cfg.Bridge, runDir: a.cfg.OVSRunDir, log: a.log,
		armed: func() bool { return a.loop.ready() == nil },
		back: func(cause string) {
			a.plumbing.kick(cause)
			a.loop.readBack(cause)
		},
	}
	a.healths = newHealthPorts(&healthPorts{want: a.wantedHealthPorts, healthy: func() bool { return a.loop.ready() == nil }, failed: a.healthPortFailed, log: a.log})
	a.hygiene = newHygiene(&hygiene{
		daemon: a.daemon.current, dial: func(ctx context.Context) (*ovs.Daemon, error) { return ovs.DialDaemon(ctx, a.cfg.OVSRunDir) }, source: a.source, lingering: a.services.lingering, changed: func() { a.loop.kick("connections") }, log: a.log,
	})
	a.cutter = newCutter(&cutter{daemon: a.daemon.current, log: a.log, cut: func(n int) { a.meter.cut.Add(float64(n)) }})
	a.pods = attach.New(attach.Config{
		Bridge: a.cfg.Bridge, NodeName: a.cfg.NodeName, Ports: a.db, Links: &host.Links{ProcSys: a.cfg.ProcSys}, Flows: a.loop,
		PodCIDRs:  func() []netip.Prefix { return a.nodesNow().self.PodCIDRs },
		MTU:       func() int { _, mtu, _ := a.plumbing.now(); return mtu },
		NoOffload: a.plumbing.datapath() == "netdev",
		RouterMAC: flows.RouterMAC(), Ready: a.canAttach, Known: a.policies.waitFor, Cooldown: a.cfg.Cooldown, Clock: time.Now, Log: a.log,
	})
	a.denials = newDenials(&denials{daemon: a.daemon.current, loop: a.loop, log: a.log})
	a.meter.registry.MustRegister(a.denials, a.policies.refusals)
	a.policies.refusals.pods = a.loop.withoutFlows
	a.meter.registry.MustRegister(newObserved(observed{
		usage: a.pods.Usage, peers: a.peers.list, nodes: a.nodesNow, loop: a.loop,
		age: a.age, ready: a.notReady, transactions: a.db.Transactions, timeout: 2 * time.Second,
	}))
	a.health.watch(checkKubernetes, func() error {
		if !a.source.Synced() {
			return errors.Join(errors.New("the first list of Nodes has not been read yet"), a.source.Alive())
		}
		return a.source.Alive()
	})
	a.health.watch("ovsdb", a.db.Alive)
	a.health.watch("ovs-vswitchd", func() error { _, err := a.daemon.current(); return cmp.Or(err, a.daemon.fit()) })
	a.health.watch("bridge and host", func() error { _, _, err := a.plumbing.now(); return err })
	a.health.watch("flows", a.loop.ready)
	a.health.watch("podCIDR", func() error {
		if n := a.nodesNow(); n.found && len(n.self.PodCIDRs) == 0 {
			return fmt.Errorf("node %s has no usable spec.podCIDRs: run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set spec.podCIDR of the Node", a.cfg.NodeName)
		}
		return nil
	})
	a.health.watch("peers", a.peers.allTried)
	if a.cfg.CNIPlugin != "" {
		a.health.watch(checkInstalled, func() error { return errors.New("the plugin is not installed yet") })
	}
	return nil
}

func (a *Agent) newSource() (source.Source, error) {
	var without []string
	if a.cfg.ServiceProxy == "off" {
		without = source.ServiceKindNames()
	}
	if a.cfg.Manifests != "" {
		return source.NewManifests(source.ManifestsConfig{Dir: a.cfg.Manifests, Without: without, Log: a.log, OnChange: a.objectChanged})
	}
	return source.NewAPI(source.APIConfig{
		Kubeconfig: a.cfg.Kubeconfig, Server: a.cfg.Server, NodeName: a.cfg.NodeName, Without: without, Log: a.log, OnChange: a.objectChanged,
	})
}

// dialAttempt bounds one attempt to reach OVSDB; the agent goes on trying.
const dialAttempt = 10 * time.Second

func (a *Agent) dial(ctx context.Context) (*ovs.DB, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, dialAttempt)
		db, err := ovs.Dial(attempt, ovs.Config{Endpoint: a.cfg.OVSDB, Log: a.log})
		cancel()
		if err == nil {
			a.log.WithField("endpoint", a.cfg.OVSDB).Info("connected to OVSDB")
			return db, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		a.log.WithError(err).Warn("Open vSwitch is not there yet; trying again")
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

// supervise runs every part until ctx ends. A part that ends before is a failure of the agent.
func (a *Agent) supervise(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			err := run(ctx)
			if ctx.Err() == nil {
				stop(fmt.Errorf("%s ended: %w", name, err))
			}
		})
	}
	endless := func(run func(context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return errors.New("without a reason") }
	}
	part("the source of Kubernetes objects", a.source.Run)
	part("the admin socket", a.serveAdmin)
	part("HTTP", a.serveHTTP)
	part("the watch of ovs-vswitchd", endless(a.daemon.run))
	part("the watch of OVSDB", endless(a.watchDB))
	part("the watch of the host", endless(a.watchHost))
	part("the loop", endless(a.loop.run))
	part("the host's plumbing", endless(a.plumbing.run))
	part("the connection tracker", endless(a.hygiene.run))
	part("the watch of connections", endless(a.cutter.run))
	part("the log of denials", endless(a.denials.run))
	part("the retries of what was refused", endless(a.tryRefused))
	part("the healthCheckNodePorts", endless(a.healths.run))
	part("the probes", endless(a.peers.run))
	part("the audit", endless(a.audit))
	part("the CNI server", a.serveCNI)
	part("the report to Kubernetes", endless(a.report))
	a.loop.kick("start")
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	a.log.Info("stopped; flows and ports stay as they are")
	return nil
}

// watchDB turns changes of OVSDB into kicks.
func (a *Agent) watchDB(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.db.Changed():
			a.plumbing.kickBridge()
			a.loop.kick("ovsdb")
		}
	}
}

// watchHost turns changes of links, addresses, routes and neighbours into kicks, and subscribes anew
// when the subscription breaks.
func (a *Agent) watchHost(ctx context.Context) {
	for ctx.Err() == nil {
		err := host.Watch(ctx, attach.IsLinkName, a.plumbing.kick)
		if ctx.Err() != nil {
			return
		}
		a.log.WithError(err).Warn("lost the kernel's notifications; subscribing again")
		a.plumbing.kick("notifications lost")
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// audit reads everything back at each interval.
func (a *Agent) audit(ctx context.Context) {
	tick := time.NewTicker(a.cfg.AuditInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.loop.audit()
		}
	}
}

// serveCNI adopts what is there once the flows are in step, then serves the plugin and installs it.
func (a *Agent) serveCNI(ctx context.Context) error {
	if err := a.waitFor(ctx, a.loop.ready); err != nil {
		return nil
	}
	adopted, removed, err := a.pods.Adopt(ctx)
	if err != nil {
		return fmt.Errorf("adopting the ports of the bridge: %w", err)
	}
	a.log.WithFields(logrus.Fields{"adopted": adopted, "stale": removed}).Info("pods taken over from OVSDB")
	var wg sync.WaitGroup
	defer wg.Wait()
	if a.cfg.CNIPlugin != "" {
		wg.Go(func() { a.install(ctx) })
	}
	return cni.Serve(ctx, cni.ServerConfig{Socket: a.cfg.CNISocket, Handler: a.pods, Log: a.log, Observe: a.meter.cni})
}

// install puts plugin and configuration in place as soon as the agent is ready.
func (a *Agent) install(ctx context.Context) {
	if a.waitFor(ctx, func() error { return joined(a.health.problems(checkInstalled)) }) != nil {
		return
	}
	list, err := cni.Conflist(cni.ConflistConfig{Name: "twill", Socket: a.cfg.CNISocket, Portmap: a.cfg.portmap(), Bandwidth: a.cfg.Bandwidth})
	if a.cfg.Portmap == "auto" && !a.cfg.portmap() {
		a.log.Warnf("hostPort of pods is not served: put the reference plugin portmap into %s and restart the agent, or set --cni-portmap=false", a.cfg.CNIBinDir)
	}
	if err == nil {
		var changed []string
		changed, err = cni.Install(cni.InstallConfig{
			Plugin: a.cfg.CNIPlugin, BinDir: a.cfg.CNIBinDir, ConfDir: a.cfg.CNIConfDir, ConfName: a.cfg.CNIConfName, Conflist: list,
		})
		for _, c := range changed {
			a.log.Info("installed " + c)
		}
	}
	if err != nil {
		a.log.WithError(err).Error("the CNI plugin is not installed")
	}
	a.health.watch(checkInstalled, func() error { return err })
}

// waitFor polls a condition that has no event of its own until it holds or ctx ends.
func (a *Agent) waitFor(ctx context.Context, condition func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for condition() != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
