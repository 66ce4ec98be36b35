package packets

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestDamageIsRepaired breaks one thing after the other on a node, as an administrator, another program
// or a mistake would, and waits until it is as before and was counted.
func TestDamageIsRepaired(t *testing.T) {
	t.Setenv("TWILL_AUDIT_INTERVAL", "1s")
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-2")
	a, b := pods[0], pods[1]
	mustPing(t, l, a, b)
	gateways := gateways(labtest.Node(t, l, "node-1"))
	port := statusOf(t, l, "node-1").Pods[0].Port

	// state is everything of the node that is Twill's, in the words of the tools.
	state := func() string {
		var out strings.Builder
		for _, show := range []string{
			"ovs-ofctl -O OpenFlow15 --no-stats dump-flows br-twill",
			"ovs-vsctl --columns=name,ofport,type,options find Interface name=twill-tun",
			"ovs-vsctl --columns=name,ofport,external_ids find Interface name=" + port,
			"ovs-vsctl get Bridge br-twill fail_mode protocols flow_tables",
			"ip -o address show dev twill0 scope global",
			"ip -4 route show proto 119", "ip -6 route show proto 119",
			"nft -n list table inet twill",
			"sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding",
		} {
			got, err := l.NodeExec(t.Context(), "node-1", strings.Fields(show)...)
			if err != nil {
				t.Fatal(err)
			}
			out.WriteString("# " + show + "\n" + got.Stdout + got.Stderr)
		}
		return counters.ReplaceAllString(out.String(), "")
	}
	before := state()

	for _, c := range []struct{ what, command string }{
		{"all flows are deleted", "ovs-ofctl -O OpenFlow15 del-flows br-twill"},
		{"the flows of one table are deleted", "ovs-ofctl -O OpenFlow15 del-flows br-twill table=60"},
		{"a flow that is nobody's stands in the way", "ovs-ofctl -O OpenFlow15 add-flow br-twill table=60,priority=999,actions=drop"},
		{"a flow is made weaker", "ovs-ofctl -O OpenFlow15 mod-flows br-twill table=10,actions=goto_table:60"},
		{"the tunnel port is deleted", "ovs-vsctl del-port br-twill twill-tun"},
		{"the tunnel port gets other options", "ovs-vsctl set Interface twill-tun options:key=7"},
		{"the port of a pod is deleted", "ovs-vsctl del-port br-twill " + port},
		{"the bridge is made to fail open", "ovs-vsctl set Bridge br-twill fail_mode=standalone"},
		{"the gateway loses its IPv4 address", "ip address del " + gateways[0].String() + "/32 dev twill0"},
		{"the gateway loses its IPv6 address", "ip address del " + gateways[1].String() + "/128 dev twill0"},
		{"the gateway is down", "ip link set twill0 down"},
		{"the IPv4 routes are gone", "ip -4 route flush proto 119"},
		{"the IPv6 routes are gone", "ip -6 route flush proto 119"},
		{"the neighbours are gone", "ip neighbour flush nud permanent dev twill0"},
		{"our nftables table is deleted", "nft delete table inet twill"},
		{"all of nftables is flushed", "nft flush ruleset"},
		{"forwarding is switched off", "sysctl -qw net.ipv4.ip_forward=0"},
	} {
		repaired := metric(t, l, "node-1", "twill_drift_repaired_total", "")
		labtest.OnNode(t, l, "node-1", strings.Fields(c.command)...)
		took := eventually(t, 10*time.Second, c.what, func() string {
			if changed := difference(before, state()); changed != "" {
				return changed
			}
			for _, family := range families(l) {
				if lost := pings(t, l, a, labtest.Of(family, b.Addresses)); lost != "" {
					return lost
				}
			}
			if now := metric(t, l, "node-1", "twill_drift_repaired_total", ""); now <= repaired {
				return "twill_drift_repaired_total did not rise"
			}
			return ""
		})
		t.Logf("%s: repaired within %s", c.what, took.Round(10*time.Millisecond))
	}
	mustPing(t, l, b, a)
	if s := statusOf(t, l, "node-1"); !s.Ready {
		t.Errorf("not ready afterwards: %v", s.Problems)
	}
}

// counters are what changes by itself in the output of nft.
var counters = regexp.MustCompile(`packets [0-9]+ bytes [0-9]+`)

// difference shows the lines that only one of two texts has, whatever their order.
func difference(before, after string) string {
	has := func(text string) map[string]bool {
		m := map[string]bool{}
		for line := range strings.Lines(text) {
			m[line] = true
		}
		return m
	}
	b, a := has(before), has(after)
	var out strings.Builder
	for line := range strings.Lines(before) {
		if !a[line] {
			out.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(after) {
		if !b[line] {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}
