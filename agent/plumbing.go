package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// tunnelPortName is the OVS name of the one tunnel port.
const tunnelPortName = "twill-tun"

// nodeView is what the Node objects say, after Admit.
type nodeView struct {
	self    flows.Node
	found   bool
	peers   map[string]flows.Node
	refused []flows.Refusal
}

// plumbing keeps everything around the flows as it should be: the bridge and its two ports in OVSDB, the
// host's gateway with its addresses, routes and neighbours, the nftables table. It is one goroutine, and a
// pass repairs whatever it finds wrong; kicks say only that it is worth looking.
type plumbing struct {
	cfg   *Config
	set   settings
	db    *ovs.DB
	nodes func() (nodeView, error)
	// services are nil where another proxy cares for them.
	services func() *flows.Services
	// repair puts back port rows of pods that somebody else removed, see attach.Manager.
	repair func(context.Context) ([]string, error)
	// largestPod is the largest MTU that an interface of a pod has, 0 without pods.
	largestPod func() int
	log        logrus.FieldLogger
	meter      *metrics
	done       func(cause string) // told after each pass that may matter to flows

	kicks   chan string   // look at everything
	objects chan string   // look at everything, if objects ask for something else than before
	bridges chan struct{} // look at the bridge only

	mu       sync.Mutex
	underlay host.Underlay
	mtu      int
	// local are the addresses that the host carries.
	local   []netip.Addr
	failure error
	passed  bool

	asked ask // what the last good look at everything was for; only run's goroutine looks here
}

// ask is what bridge and host depend on in objects: Nodes, Services and who serves them.
type ask struct {
	self   flows.Node
	routes []netip.Prefix
	// own are the addresses of all nodes, sorted.
	own []netip.Addr
	// services is what the host has to know of Services, nil where another proxy cares for them. What the host does for
	// them follows from these two and the podCIDRs.
	services      *flows.ServiceHost
	serviceRoutes []netip.Prefix
	hostServices  *host.NFTServices
	// local are the addresses that the host carries: of those Services may have some.
	local []netip.Addr
}

func (a ask) equal(b ask) bool {
	return a.self.Equal(b.self) && slices.Equal(a.routes, b.routes) && slices.Equal(a.own, b.own) &&
		(a.sameServices(b) || slices.Equal(a.serviceRoutes, b.serviceRoutes) && reflect.DeepEqual(a.hostServices, b.hostServices))
}

// sameServices is true when what follows from Services is the same in both, without a look at each.
func (a ask) sameServices(b ask) bool {
	return a.services == b.services && slices.Equal(a.own, b.own) && slices.Equal(a.self.PodCIDRs, b.self.PodCIDRs) && slices.Equal(a.local, b.local)
}

// ask puts together what the objects ask for now.
func (p *plumbing) ask(n nodeView) ask {
	a := ask{self: n.self, routes: p.routes(n), own: ownAddresses(n), local: p.addresses()}
	s := p.services()
	if s == nil {
		return a
	}
	a.services = s.Host
	if a.sameServices(p.asked) && p.asked.services != nil {
		a.serviceRoutes, a.hostServices = p.asked.serviceRoutes, p.asked.hostServices
		return a
	}
	a.serviceRoutes, a.hostServices = serviceRoutes(s, a), p.nftServices(s, a)
	return a
}

// lookTimeout bounds one look; ovs-vswitchd may take its time to make a port.
const lookTimeout = 20 * time.Second

// hostInterval is how often the host side is looked at without any kick.
const hostInterval = 10 * time.Second

func newPlumbing(p *plumbing) *plumbing {
	p.kicks = make(chan string, 1)
	p.objects = make(chan string, 1)
	p.bridges = make(chan struct{}, 1)
	return p
}

// kick asks for a look at everything. It never blocks.
func (p *plumbing) kick(cause string) {
	select {
	case p.kicks <- cause:
	default:
	}
}

// kickObject asks for a look at everything if that follows from the objects. Most that come and go change
// nothing here, and a look costs some processes of nft.
func (p *plumbing) kickObject(cause string) {
	select {
	case p.objects <- cause:
	default:
	}
}

// kickBridge asks for a look at the bridge in OVSDB alone: cheap enough for every change of a row.
func (p *plumbing) kickBridge() {
	select {
	case p.bridges <- struct{}{}:
	default:
	}
}

func (p *plumbing) run(ctx context.Context) {
	tick := time.NewTicker(hostInterval)
	defer tick.Stop()
	retry := time.NewTimer(0)
	for {
		cause, look, wanted := "start", p.ensure, p.asksElse
		select {
		case <-ctx.Done():
			return
		case cause = <-p.kicks:
		case cause = <-p.objects:
			if p.unchanged() {
				continue
			}
		case <-p.bridges:
			cause = "ovsdb"
			if _, _, err := p.now(); err == nil { // else everything has to be looked at
				look, wanted = p.ensureBridge, func() bool { return false } // no object asks anything of it
			}
		case <-tick.C:
			cause = "tick"
		case <-retry.C:
		}
		if err := p.pass(ctx, cause, look, wanted()); err != nil && ctx.Err() == nil {
			retry.Reset(retryAfter)
		}
	}
}

// pass looks once, at what look looks at, and repairs it. If wanted, what changes is what objects ask for anew.
func (p *plumbing) pass(ctx context.Context, cause string, look func(context.Context) ([]string, error), wanted bool) error {
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	changed, err := look(looking)
	if err != nil && ctx.Err() != nil {
		return err // the agent ends
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("looking at them was not done within %s: Open vSwitch does not answer, or the node has no processor to spare: %w", lookTimeout, err)
	}
	p.mu.Lock()
	worse := err != nil && (p.failure == nil || p.failure.Error() != err.Error())
	better := err == nil && (p.failure != nil || !p.passed)
	first := !p.passed
	p.failure = err
	p.passed = p.passed || err == nil
	p.mu.Unlock()
	for _, what := range changed {
		entry := p.log.WithField("cause", cause)
		if first || wanted {
			entry.Info(what)
			continue
		}
		p.meter.drift("host", 1)
		entry.Warn(what)
	}
	switch {
	case worse && first:
		p.log.WithField("for", err).Info("bridge and host wait")
	case worse:
		p.log.WithError(err).Warn("bridge or host are not as they should be; trying again")
	}
	if better || len(changed) > 0 {
		p.done(cause)
	}
	return err
}

// unchanged is true when all is as objects ask for it still, as far as is known.
func (p *plumbing) unchanged() bool {
	_, _, err := p.now()
	return err == nil && !p.asksElse() // errors are to be said by a pass
}

// asksElse is true when objects ask for something else than at the last good look at everything.
func (p *plumbing) asksElse() bool {
	nodes, err := p.nodes()
	return err != nil || !p.asked.equal(p.ask(nodes))
}

// ensure looks at everything: which address and MTU, the bridge, the host.
func (p *plumbing) ensure(ctx context.Context) (changed []string, err error) {
	nodes, err := p.nodes()
	if err != nil {
		return nil, err
	}
	under, err := host.ChooseUnderlay(nodes.self.Addresses, host.Want{Address: p.set.tunnelAddress, Interface: p.cfg.TunnelInterface})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", p.cfg.NodeName, err)
	}
	mtu := p.cfg.MTU
	if mtu == 0 {
		mtu = host.PodMTU(under)
	}
	local, err := host.Addresses()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	changed = append(changed, p.servedHere(local)...)
	if under != p.underlay {
		changed = append(changed, "tunnel address is "+under.Why)
	}
	if mtu != p.mtu {
		changed = append(changed, fmt.Sprintf("MTU of pods is %d bytes; %s has %d", mtu, under.Link, under.LinkMTU))
	}
	p.underlay, p.mtu, p.local = under, mtu, local
	p.mu.Unlock()

	largest := p.largestPod() // once, so that OVSDB and the link are of one mind when a pod goes meanwhile
	repaired, err := p.bridgeFor(ctx, largest)
	changed = append(changed, repaired...)
	if err != nil {
		return changed, err
	}
	now := p.ask(nodes)
	gatewayChanged, gatewayErr := p.gateway(now, mtu, largest).Ensure(ctx)
	nftChanged, nftErr := p.nftables(now).Ensure(ctx)
	if err = errors.Join(gatewayErr, nftErr); err == nil {
		p.asked = now
	}
	return append(append(changed, gatewayChanged...), nftChanged...), err
}

// ensureBridge looks at the bridge alone.
func (p *plumbing) ensureBridge(ctx context.Context) (changed []string, err error) {
	return p.bridgeFor(ctx, p.largestPod())
}

// bridgeFor looks at the bridge and its ports in OVSDB, for the address and MTU of the last look at everything and
// pods of that MTU at most. A pod's port that cannot be put back does not make the node unfit for other pods.
func (p *plumbing) bridgeFor(ctx context.Context, largest int) (changed []string, err error) {
	p.mu.Lock()
	under, mtu := p.underlay, p.mtu
	p.mu.Unlock()
	changed, err = p.db.EnsureBridge(ctx, p.bridgeSpec(under, max(mtu, largest)))
	if err != nil {
		return changed, err
	}
	repaired, err := p.repair(ctx)
	if err != nil {
		p.log.WithError(err).Warn("trying again at the next look")
	}
	return append(changed, repaired...), nil
}

// datapath resolves "auto": the kernel's datapath where OVS offers it.
func (p *plumbing) datapath() string {
	if p.cfg.DatapathType != "auto" {
		return p.cfg.DatapathType
	}
	if slices.Contains(p.db.Info().DatapathTypes, "system") && host.KernelDatapath() {
		return "system"
	}
	return "netdev"
}

// bridgeMark is how a bridge of ours is told from one that happens to have the name.
func bridgeMark() map[string]string { return map[string]string{"owner": "twill"} }

// bridgeSpec is the bridge as it should be; gatewayMTU is that of the gateway's link.
func (p *plumbing) bridgeSpec(under host.Underlay, gatewayMTU int) ovs.BridgeSpec {
	names := map[uint8]string{}
	for _, t := range flows.Tables() {
		names[uint8(t)] = t.String()
	}
	return ovs.BridgeSpec{
		Name: p.cfg.Bridge, DatapathType: p.datapath(), TableNames: names, Prefixes: flows.Prefixes(),
		ExternalIDs: bridgeMark(),
		Ports: []ovs.PortSpec{
			{Name: tunnelPortName, Type: string(p.set.tunnelType), OFPort: int(flows.TunnelPort), Options: map[string]string{
				"remote_ip": "flow", "key": "flow",
				"local_ip": under.Address.String(), "dst_port": fmt.Sprint(p.set.tunnelPort),
			}},
			{Name: p.cfg.Gateway, Type: "internal", OFPort: int(flows.GatewayPort), MAC: flows.GatewayMAC(), MTU: gatewayMTU},
		},
	}
}

func (p *plumbing) gateway(a ask, mtu, largest int) host.Gateway {
	g := host.Gateway{
		Link: p.cfg.Gateway, MAC: flows.GatewayMAC(), MTU: mtu, Largest: largest, RouterMAC: flows.RouterMAC(),
		NoOffload: p.datapath() == "netdev", ProcSys: p.cfg.ProcSys,
	}
	for _, c := range a.self.PodCIDRs {
		g.Addresses = append(g.Addresses, flows.Gateway(c))
	}
	g.Routes = slices.Concat(a.routes, a.serviceRoutes)
	return g
}

// routes are the ranges that the host reaches through the bridge: the cluster CIDRs, and every podCIDR
// that no cluster CIDR contains.
func (p *plumbing) routes(n nodeView) []netip.Prefix {
	out := slices.Clone(p.set.clusterCIDRs)
	add := func(cidrs []netip.Prefix) {
		for _, c := range cidrs {
			if !slices.ContainsFunc(p.set.clusterCIDRs, func(k netip.Prefix) bool { return k.Bits() <= c.Bits() && k.Contains(c.Addr()) }) {
				out = append(out, c)
			}
		}
	}
	add(n.self.PodCIDRs)
	for _, peer := range n.peers {
		add(peer.PodCIDRs)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return slices.Compare([]string{a.String()}, []string{b.String()})
	})
	return slices.Compact(out)
}

func (p *plumbing) nftables(a ask) host.NFTables {
	cluster := slices.Clone(a.routes)
	for _, x := range a.own {
		if !slices.Contains(a.self.Addresses, x) {
			cluster = append(cluster, netip.PrefixFrom(x, x.BitLen()))
		}
	}
	return host.NFTables{
		Cluster:  cluster,
		PodCIDRs: a.self.PodCIDRs, NoMasquerade: slices.Concat(a.routes, p.set.noMasquerade),
		GatewayLink: p.cfg.Gateway, TunnelPort: p.set.tunnelPort, Services: a.hostServices,
	}
}

// addresses are those that the host carried at the last look at everything.
func (p *plumbing) addresses() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.local
}

// now returns what the last pass found out. err says why the host side is not in order.
func (p *plumbing) now() (under host.Underlay, mtu int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure != nil {
		return p.underlay, p.mtu, p.failure
	}
	if !p.passed {
		return p.underlay, p.mtu, errors.New("bridge and host have not been looked at yet")
	}
	return p.underlay, p.mtu, nil
}
