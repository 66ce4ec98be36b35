package lab

import "context"

// Status is what `twill-lab status` prints.
type Status struct {
	Config
	Dir   string       `json:"dir"`
	Nodes []NodeStatus `json:"nodes"`
	Pods  []Pod        `json:"pods"`
}

// NodeStatus is one node's part of a Status.
type NodeStatus struct {
	Name      string   `json:"name"`
	NetNS     string   `json:"netns"`
	Addresses []string `json:"addresses"`
	PodCIDRs  []string `json:"podCIDRs"`
	// Process IDs are 0 where nothing runs.
	OVSDBPid    int  `json:"ovsdbServerPid"`
	VSwitchdPid int  `json:"vswitchdPid"`
	AgentPid    int  `json:"agentPid"`
	Ready       bool `json:"ready"`
	// Reason says why the agent is not ready.
	Reason string `json:"reason,omitempty"`
	Log    string `json:"log"`
}

// Status looks at everything the lab has.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	s := Status{Config: l.Config, Dir: l.dir, Nodes: []NodeStatus{}, Pods: []Pod{}}
	for _, n := range l.Nodes() {
		ns := NodeStatus{Name: n.Name, NetNS: n.NetNS(), AgentPid: n.AgentPid(), Log: n.LogFile()}
		ns.OVSDBPid, ns.VSwitchdPid = n.OVS().Pids()
		for _, a := range n.Addresses() {
			ns.Addresses = append(ns.Addresses, a.String())
		}
		for _, c := range n.PodCIDRs() {
			ns.PodCIDRs = append(ns.PodCIDRs, c.String())
		}
		switch {
		case ns.AgentPid == 0 && l.NoAgent:
			ns.Reason = "the lab is without agents"
		case ns.AgentPid == 0:
			ns.Reason = "no agent runs"
		default:
			if err := n.Ready(ctx); err != nil {
				ns.Reason = err.Error()
			} else {
				ns.Ready = true
			}
		}
		s.Nodes = append(s.Nodes, ns)
	}
	pods, err := l.Pods()
	s.Pods = append(s.Pods, pods...)
	return s, err
}
