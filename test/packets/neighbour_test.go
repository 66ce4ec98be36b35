package packets

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestATunnelWhoseNeighbourOpenVSwitchForgotIsRepaired: userspace Open vSwitch does not learn a neighbour again while the
// kernel of the host asks for the same one, and traffic that goes on then keeps the tunnel dead.
func TestATunnelWhoseNeighbourOpenVSwitchForgotIsRepaired(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2, Config: lab.Config{IPFamily: "ipv4", Datapath: "netdev"}})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-2")
	mustPing(t, l, pods[0], pods[1])
	peer := labtest.Node(t, l, "node-2").Addresses()[0].String()

	asking, stop := context.WithCancel(t.Context())
	var both sync.WaitGroup
	defer both.Wait()
	defer stop()
	both.Go(func() { // the kernel asks, again and again
		for asking.Err() == nil {
			_, _ = l.NodeExec(asking, "node-1", "ip", "neigh", "flush", "dev", "br-phy")
			_, _ = l.NodeExec(asking, "node-1", "ping", "-c1", "-W1", peer)
		}
	})
	// It has asked once its reply has a datapath flow of its own.
	eventually(t, patience(), "an ARP reply in the datapath", func() string {
		out, err := l.NodeExec(t.Context(), "node-1", "ovs-appctl", "dpctl/dump-flows", "netdev@ovs-netdev")
		if err == nil && strings.Contains(out.Stdout, "arp(sip="+peer) && strings.Contains(out.Stdout, "op=2") {
			return ""
		}
		return out.Stdout
	})
	out, err := l.NodeExec(t.Context(), "node-1", "ovs-appctl", "tnl/neigh/flush")
	if err != nil || out.Code != 0 {
		t.Fatalf("tnl/neigh/flush: %v %s", err, out.Stderr)
	}
	began := time.Now()
	eventually(t, 4*patience(), "the tunnel carries packets again", func() string {
		out := podExec(t, l, pods[0], "ping", "-c1", "-W1", pods[1].Addresses[0].String())
		if out.Code == 0 {
			return ""
		}
		return out.Stdout + out.Stderr
	})
	t.Logf("again after %s", time.Since(began).Round(100*time.Millisecond))
	if n := metric(t, l, "node-1", "twill_drift_repaired_total", `what="neighbour"`); n == 0 {
		t.Error("the repair is not counted")
	}
}
