package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// objectChanged is told by the source that an object changed, or that it has synced.
func (a *Agent) objectChanged(key source.Key) {
	a.tellProblems(key)
	cause := key.String()
	a.plumbing.kickObject(cause)
	a.policies.note(key)
	if key.Kind == "Pod" && a.source.Get(key) == nil {
		a.hygiene.podGone()
	}
	a.loop.kick(cause)
}

// tellProblems makes an Event at an object of each thing in it that cannot be used.
func (a *Agent) tellProblems(key source.Key) {
	for _, p := range a.source.ProblemsOf(key) {
		a.source.Event(source.Ref{Key: key}, source.EventWarning, "TwillNotUsed", p.Reason)
	}
}

// readNodes looks at all Node objects and decides which claims stand. The error says what is not yet
// known.
func (a *Agent) readNodes() (nodeView, error) {
	if !a.source.Synced() {
		return nodeView{}, errors.New("waiting for the first list of Kubernetes objects")
	}
	admitted, refused := flows.Admit(a.source.Nodes())
	self, found := admitted[a.cfg.NodeName]
	delete(admitted, a.cfg.NodeName)
	v := nodeView{self: self, found: found, peers: admitted, refused: refused}
	a.mu.Lock()
	old := a.nodes.refused
	a.nodes = v
	a.mu.Unlock()
	a.announce(old, refused)
	if !found {
		return v, fmt.Errorf("no Node object named %q: check --node-name against `kubectl get nodes`, or wait for the kubelet to register", a.cfg.NodeName)
	}
	return v, nil
}

// announce logs each refusal once, while it lasts, with an Event at the Node that loses.
func (a *Agent) announce(old, now []flows.Refusal) {
	had := map[flows.Refusal]bool{}
	for _, r := range old {
		had[r] = true
	}
	for _, r := range now {
		if !had[r] {
			a.log.WithField("node", r.Node).Error(r.Reason)
			a.source.Event(source.Ref{Key: source.Key{Kind: "Node", Name: r.Node}}, source.EventWarning, "TwillClaimRefused", r.Reason)
		}
		delete(had, r)
	}
	for r := range had {
		a.log.WithField("node", r.Node).Infof("no longer refused: %s", r.What)
	}
}

// nodesNow returns the Node objects as the last pass saw them.
func (a *Agent) nodesNow() nodeView {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nodes
}

// world puts together what is known now. The error says what is missing; the agent then waits rather
// than compile a part for the whole.
func (a *Agent) world() (*flows.World, error) {
	n, err := a.readNodes()
	if err != nil {
		return nil, err
	}
	under, mtu, err := a.plumbing.now()
	if err != nil && !under.Address.IsValid() {
		return nil, err
	}
	if err := a.db.Alive(); err != nil {
		return nil, err
	}
	pods := a.pods.Attachments()
	w := &flows.World{
		Node:          n.self,
		Tunnel:        flows.Tunnel{Type: a.set.tunnelType, Port: a.set.tunnelPort, VNI: a.cfg.VNI, Local: under.Address},
		ClusterCIDRs:  a.set.clusterCIDRs,
		MTU:           mtu,
		HostAnswersND: a.plumbing.datapath() == "system",
		Peers:         n.peers,
		Pods:          pods,
		Services:      a.services.now(),
		Policy:        a.policies.update(pods),
	}
	if err := a.hygiene.begin(w); err != nil {
		return nil, err
	}
	if w.Services != nil {
		w.Round = a.rounds.now(w.Services, time.Now())
		w.Lingering = a.services.lingering.addresses()
		w.Own = w.Services.Own(a.plumbing.addresses())
	}
	return w, nil
}

// applied is told by the loop about each World that is in force.
func (a *Agent) applied(before, now *flows.World) {
	a.mu.Lock()
	a.instep = time.Now()
	a.mu.Unlock()
	if before == nil || !before.Node.Equal(now.Node) || before.Tunnel != now.Tunnel || before.MTU != now.MTU {
		a.describe(now)
	}
	if before == nil || before.Policy != now.Policy {
		a.cutter.kick(now)
		a.tellFaults(before, now)
	}
	a.tellEndpoints(before, now)
	a.peers.follow(before, now)
	if before == nil || before.Services != now.Services {
		a.healths.kick()
	}
	a.finishRestore()
}

// describe logs what this node is in the pod network, at the start and whenever that changes.
func (a *Agent) describe(w *flows.World) {
	under, _, _ := a.plumbing.now()
	a.log.WithFields(logrus.Fields{
		"node": w.Node.Name, "podCIDRs": w.Node.PodCIDRs, "datapath": a.plumbing.datapath(),
		"tunnel": w.Tunnel.Type, "port": w.Tunnel.Port, "vni": w.Tunnel.VNI,
		"address": w.Tunnel.Local, "interface": under.Link, "why": under.Why, "mtu": w.MTU,
	}).Info("this node in the pod network")
}

// finishRestore lets OVS forward again after its start-up held everything back for our flows
// (other_config:flow-restore-wait, ovs-vswitchd.conf.db(5)).
func (a *Agent) finishRestore() {
	if !a.db.Restoring() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.db.FinishRestore(ctx); err != nil {
		a.log.WithError(err).Error("flow-restore-wait could not be cleared; OVS holds all traffic back")
		return
	}
	a.log.Info("flows restored; cleared flow-restore-wait")
}

// age is the time since the bridge was last found or brought in step; since the start if never.
func (a *Agent) age() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.instep)
}
