package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/twill-net/twill/agent/attach"
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

	Flows int     `json:"flows"`
	Last  Applied `json:"lastApplied"`
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

func (a *Agent) status() Status {
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
	s.Problems = append(s.Problems, a.loop.problems()...)
	s.Problems = append(s.Problems, a.pods.Problems()...)
	for _, p := range s.Peers {
		if p.Reachable != nil && !*p.Reachable {
			s.Problems = append(s.Problems, fmt.Sprintf("peer %s does not answer through the tunnel (%s): is UDP port %d open between the nodes, does its agent run?", p.Node, p.Tunnel, a.set.tunnelPort))
		}
	}
	a.loop.view(func(d *flows.Desired, w *flows.World, last Applied) {
		s.Flows, s.Last = d.Len(), last
		if w == nil {
			return
		}
		if w.Services != nil {
			s.Services, s.WithoutEndpoints = len(w.Services.Ports), useless(w.Services)
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

// LiveFlow is one flow of the live table with the object behind it.
type LiveFlow struct {
	Owner    flows.Owner  `json:"owner"` // empty for a flow that is not ours
	Table    string       `json:"table"`
	Priority uint16       `json:"priority"`
	Sentence string       `json:"sentence"`
	Drop     flows.Reason `json:"drop,omitempty"`
	Packets  uint64       `json:"packets"`
	Bytes    uint64       `json:"bytes"`
	Raw      string       `json:"raw"`
}

// liveFlows reads the table back and explains it; owner, if given, selects by the start of the owner's name.
func (a *Agent) liveFlows(ctx context.Context, owner string) ([]LiveFlow, error) {
	live, err := a.loop.bridge.Flows(ctx)
	if err != nil {
		return nil, err
	}
	out := []LiveFlow{}
	a.loop.view(func(d *flows.Desired, w *flows.World, _ Applied) {
		names := flows.NamesOf(w)
		for _, f := range live {
			x := LiveFlow{
				Table: flows.Table(f.Table).String(), Priority: f.Priority, Packets: f.Packets, Bytes: f.Bytes,
				Raw: fmt.Sprintf("cookie=%#x, table=%d, priority=%d,%s actions=%s", f.Cookie, f.Table, f.Priority, f.Text, f.Actions),
			}
			actions, err := flows.ParseActions(f.Actions)
			if err != nil {
				x.Sentence = err.Error()
			}
			said := flows.Flow{Table: flows.Table(f.Table), Match: flows.ParseMatch(f.Text), Actions: actions}
			if said.Learned(f.Cookie) {
				x.Owner = "learned"
			}
			if wanted, ok := d.Flow(f.Cookie); ok {
				x.Owner, x.Drop = wanted.Owner, wanted.Drop
				said.Drop = wanted.Drop
			}
			if err == nil {
				x.Sentence = names.Explain(said)
			}
			// A condition is shared by rules, and its sentence names them.
			if owner == "" || string(x.Owner) == owner || strings.HasPrefix(string(x.Owner), owner+"/") || strings.HasPrefix(string(x.Owner), owner+":") ||
				strings.HasPrefix(string(x.Owner), "clause/") && strings.Contains(x.Sentence, " "+owner+"/") {
				out = append(out, x)
			}
		}
	})
	return out, nil
}
