package inspect_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/bridgetest"
	"github.com/twill-net/twill/test/ovsd"
)

const bridgeName = bridgetest.Name

// node is a node whose bridge is real and whose World is ours to choose.
type node struct {
	t       testing.TB
	sw      *ovs.Switch
	ctrl    *ovs.Daemon
	o       *ovsd.OVS
	world   *flows.World
	desired *flows.Desired
	behind  error
}

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func nodeObject(name string, n int) flows.Node {
	return flows.Node{
		Name: name, UID: "uid-" + name, Created: time.Unix(int64(1735689600+n), 0).UTC(),
		PodCIDRs:  prefixes(fmt.Sprintf("198.18.%d.0/24", n), fmt.Sprintf("2001:db8:1:%d::/64", n)),
		Addresses: addresses(fmt.Sprintf("198.51.100.%d", n), fmt.Sprintf("2001:db8:f::%d", n)),
	}
}

func attachment(port uint32, namespace, pod string, n int) flows.Attachment {
	mac := net.HardwareAddr{0x0a, 0x58, 0, 0, 1, byte(n)}
	return flows.Attachment{
		Port: fmt.Sprintf("p%d", port), OFPort: port, Namespace: namespace, Pod: pod, UID: "uid-" + pod, Sandbox: fmt.Sprintf("s%d", port),
		IfName: "eth0", MAC: mac, MTU: 1450, Addresses: addresses(fmt.Sprintf("198.18.1.%d", n), fmt.Sprintf("2001:db8:1:1::%d", n)),
	}
}

// alpha is a node with three pods, one of which is from before the MTU shrank, and two peers.
func alpha() *flows.World {
	w := &flows.World{
		Node:         nodeObject("alpha", 1),
		Tunnel:       flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7, Local: netip.MustParseAddr("198.51.100.1")},
		ClusterCIDRs: prefixes("198.18.0.0/16", "2001:db8:1::/48"), MTU: 1450,
		Peers: map[string]flows.Node{"beta": nodeObject("beta", 2), "gamma": nodeObject("gamma", 3)},
		Pods:  map[flows.Owner][]flows.Attachment{},
	}
	for _, a := range []flows.Attachment{attachment(1, "default", "web-0", 2), attachment(2, "shop", "db", 3), attachment(3, "default", "old", 4)} {
		if a.Pod == "old" {
			a.MTU = 1500
		}
		w.Pods[a.Owner()] = []flows.Attachment{a}
	}
	return w
}

func compiled(t testing.TB, w *flows.World) *flows.Desired {
	t.Helper()
	d := flows.NewDesired()
	wanted := map[flows.Owner][]flows.Flow{}
	for _, o := range w.Owners() {
		fs, err := flows.Compile(w, o)
		if err != nil {
			t.Fatal(err)
		}
		wanted[o] = fs
	}
	if _, err := d.Replace(wanted); err != nil {
		t.Fatal(err)
	}
	return d
}

// startNode makes the bridge and installs what the World compiles to.
func startNode(t testing.TB, w *flows.World, ports ...uint32) *node {
	t.Helper()
	b := bridgetest.Start(t.Context(), t, ports...)
	n := &node{t: t, o: b.OVS, ctrl: b.Daemon, sw: b.Switch}
	n.become(w)
	return n
}

// become makes the bridge hold what a World compiles to.
func (n *node) become(w *flows.World) {
	n.t.Helper()
	n.world, n.desired = w, compiled(n.t, w)
	n.repair()
}

// repair is the agent's audit.
func (n *node) repair() {
	n.t.Helper()
	d := n.desired.Diff(n.live())
	n.desired.DiffGroups(n.groups(), &d)
	if !d.Empty() {
		n.apply(d.Bundle())
	}
}

func (n *node) groups() []flows.LiveGroup {
	n.t.Helper()
	text, err := n.sw.Groups(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := flows.ParseGroups(text)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *node) apply(bundle string) {
	n.t.Helper()
	if err := n.sw.Apply(n.t.Context(), bundle); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) live() []flows.Live {
	n.t.Helper()
	installed, err := n.sw.Flows(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return ovs.Live(installed)
}

func (n *node) subject() *inspect.Subject {
	return &inspect.Subject{
		Node: "alpha", Bridge: bridgeName,
		View:      func(read func(*flows.Desired, *flows.World)) { read(n.desired, n.world) },
		Installed: n.sw.Flows,
		Groups:    n.sw.Groups,
		Tracer:    func(context.Context) (inspect.Tracer, error) { return n.ctrl, nil },
		Behind:    func() error { return n.behind },
	}
}
