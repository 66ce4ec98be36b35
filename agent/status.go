package agent

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// Status is the answer to `twill status`.
type Status struct {
	Version  string   `json:"version"`
	Node     string   `json:"node"`
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`

	OVS      string `json:"ovs"`
	Datapath string `json:"datapath"`
	Bridge   string `json:"bridge"`

	Tunnel    string     `json:"tunnel"`
	Address   netip.Addr `json:"tunnelAddress"`
	Interface string     `json:"tunnelInterface"`
	Why       string     `json:"tunnelAddressWhy"`
	VNI       uint32     `json:"vni"`
	Encrypted bool       `json:"encrypted"`
	MTU       int        `json:"mtu"`
	LinkMTU   int        `json:"underlayMTU"`

	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Addresses attach.Usage   `json:"addresses"`
	Pods      []PodStatus    `json:"pods"`
	Peers     []PeerStatus   `json:"peers"`

	// Services is how many ports of Services are served, WithoutEndpoints those that nobody serves.
	Services         int      `json:"services"`
	WithoutEndpoints []string `json:"servicesWithoutEndpoints"`

	// Flows counts the flows that are wanted, Live those that the bridge holds; nil if it could not be read.
	Flows int     `json:"flows"`
	Live  *int    `json:"liveFlows"`
	Last  Applied `json:"lastApplied"`
	// Repaired counts what others had changed and the agent put right since it started.
	Repaired Repairs   `json:"repaired"`
	Watchers []Watcher `json:"watchers"`
	// ClockSkew is how far the node's clock is ahead of the API server's in seconds, negative when it is behind; nil before
	// an API server has told.
	ClockSkew *float64 `json:"clockSkewSeconds"`
}

// Repairs counts repaired drift.
type Repairs struct {
	Flows int `json:"flows"`
	Host  int `json:"host"`
}

// Watcher is one of the things that the agent follows.
type Watcher struct {
	Name string `json:"name"`
	// Problem says why it is not followed now; empty if it is.
	Problem string `json:"problem,omitempty"`
}

// PodStatus is one attached interface.
type PodStatus struct {
	Owner     flows.Owner  `json:"owner"`
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	IfName    string       `json:"ifName"`
	Port      string       `json:"port"`
	OFPort    uint32       `json:"ofport"`
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
}

func (a *Agent) status(ctx context.Context) Status {
	under, mtu, _ := a.plumbing.now()
	nodes := a.nodesNow()
	s := Status{
		Version: a.version, Node: a.cfg.NodeName, Problems: a.notReady(),
		OVS: a.daemon.version(), Datapath: a.plumbing.datapath(), Bridge: a.cfg.Bridge,
		Tunnel: fmt.Sprintf("%s, UDP port %d, VNI %d", a.set.tunnelType, a.set.tunnelPort, a.cfg.VNI),
		VNI:    a.cfg.VNI, Address: under.Address, Interface: under.Link, Why: under.Why, MTU: mtu, LinkMTU: under.LinkMTU,
		PodCIDRs: nodes.self.PodCIDRs, Addresses: a.pods.Usage(), Peers: a.peers.list(), Pods: []PodStatus{},
	}
	s.Ready = len(s.Problems) == 0
	for _, p := range a.source.Problems() {
		s.Problems = append(s.Problems, p.String())
	}
	for _, r := range nodes.refused {
		s.Problems = append(s.Problems, r.Reason)
	}
	if skew, known := a.source.Skew(); known {
		seconds := skew.Seconds()
		s.ClockSkew = &seconds
		if problem := source.SkewProblem(skew); problem != "" {
			s.Problems = append(s.Problems, problem)
		}
	}
	s.Problems = append(s.Problems, a.loop.problems()...)
	s.Problems = append(s.Problems, a.pods.Problems()...)
	for _, p := range s.Peers {
		if p.Reachable != nil && !*p.Reachable {
			s.Problems = append(s.Problems, fmt.Sprintf("peer %s does not answer through the tunnel (%s): is UDP port %d open between the nodes, does its agent run?", p.Node, p.Tunnel, a.set.tunnelPort))
		}
		if p.Narrow {
			s.Problems = append(s.Problems, fmt.Sprintf("peer %s (%s): %s, so large transfers hang: a link between the nodes has a smaller MTU than %d on %s; raise it, or set --mtu of every agent to what passes",
				p.Node, p.Tunnel, p.Problem, s.LinkMTU, s.Interface))
		}
	}
	s.Repaired = Repairs{Flows: a.meter.drifted("flow"), Host: a.meter.drifted("host")}
	for _, w := range []struct {
		name  string
		alive func() error
	}{
		{"kubernetes", a.source.Alive}, {"ovsdb", a.db.Alive},
		{"ovs-vswitchd", func() error { _, err := a.daemon.current(); return err }},
	} {
		x := Watcher{Name: w.name}
		if err := w.alive(); err != nil {
			x.Problem = err.Error()
		}
		s.Watchers = append(s.Watchers, x)
	}
	if live, err := a.loop.bridge.Flows(ctx); err == nil {
		n := len(live)
		s.Live = &n
	}
	a.loop.view(func(d *flows.Desired, w *flows.World, last Applied) {
		s.Flows, s.Last = d.Len(), last
		if w == nil {
			return
		}
		if w.Services != nil {
			s.Services, s.WithoutEndpoints = w.Services.Ports.Len(), useless(w.Services)
		}
		for _, o := range d.Owners() {
			for _, p := range w.Pods[o] {
				s.Pods = append(s.Pods, PodStatus{
					Owner: o, Namespace: p.Namespace, Name: p.Pod, IfName: p.IfName, Port: p.Port, OFPort: p.OFPort,
					MAC: p.MAC.String(), Addresses: p.Addresses, MTU: p.MTU,
				})
			}
		}
	})
	return s
}
