package packets

import (
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestNothingForeignIsTouched puts other people's things on a node and looks at them after everything an
// agent can go through on it.
func TestNothingForeignIsTouched(t *testing.T) {
	o := labtest.Prepare(t, lab.Options{Nodes: 1})
	o.NoAgent = true
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l.NoAgent = false
	for _, command := range []string{
		"ovs-vsctl add-br br-other -- set Bridge br-other datapath_type=" + l.Datapath + " fail_mode=secure external_ids:owner=somebody",
		"ovs-vsctl add-port br-other other0 -- set Interface other0 type=internal",
		"ovs-ofctl add-flow br-other cookie=0x77,priority=7,ip,actions=drop",
		"ovs-vsctl set Open_vSwitch . external_ids:somebody=else",
		"ip link add veth-other type veth peer name veth-rehto",
		"ip address add 198.19.250.1/24 dev veth-other",
		"ip link set veth-other up",
		"ip route add blackhole 198.19.251.0/24 proto 99",
		"ip rule add from 198.19.252.0/24 lookup 252 priority 1252",
		"nft add table inet somebody",
		"nft add chain inet somebody input { type filter hook input priority 5 ; }",
		"nft add rule inet somebody input ip saddr 198.19.253.0/24 counter drop",
		"nft add table ip twill-like",
	} {
		labtest.OnNode(t, l, "node-1", strings.Fields(command)...)
	}
	foreign := func() string {
		var out strings.Builder
		for _, show := range []string{
			"ovs-vsctl --columns=name,datapath_type,fail_mode,external_ids,ports,controller,protocols find Bridge name=br-other",
			"ovs-vsctl --columns=name,ofport,type,external_ids,mtu find Interface name=other0",
			"ovs-ofctl --no-stats dump-flows br-other", "ovs-vsctl get Open_vSwitch . external_ids",
			"ip -o address show dev veth-other", "ip link show veth-rehto", "ip route show proto 99", "ip rule show",
			"ip route show default", "ip -6 route show default",
			"nft list table inet somebody", "nft list table ip twill-like",
		} {
			out.WriteString("# " + show + "\n" + labtest.OnNode(t, l, "node-1", strings.Fields(show)...))
		}
		return out.String()
	}
	bridges := labtest.OnNode(t, l, "node-1", "ovs-vsctl", "list-br")
	before := foreign()
	unchanged := func(when string) {
		t.Helper()
		if after := foreign(); after != before {
			t.Errorf("%s:\n%s", when, difference(before, after))
		}
	}

	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	unchanged("after the start")
	p := addPod(t, l, "a@node-1")
	unchanged("with a pod")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	unchanged("after a restart")
	removePod(t, l, p)
	addPod(t, l, "left-behind@node-1")
	if out, err := l.NodeExec(t.Context(), "node-1", "bash", "-c", uninstall(t, l, "node-1")); err != nil || out.Code == 0 || !strings.Contains(out.Stderr, "stop it first") {
		t.Errorf("uninstalling under a running agent: exit code %d, %v: %s", out.Code, err, out.Stderr)
	}
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	labtest.OnNode(t, l, "node-1", "bash", "-c", uninstall(t, l, "node-1"))
	unchanged("after uninstalling")

	for show, want := range map[string]string{
		"ovs-vsctl list-br":                   bridges,
		"nft list tables":                     "table inet somebody\ntable ip twill-like\n",
		"ip -4 route show proto 119":          "",
		"ip -6 route show proto 119":          "",
		"bash -c ls\t" + cniDirs(l, "node-1"): "",
	} {
		args := strings.Fields(show)
		if rest, ok := strings.CutPrefix(show, "bash -c ls\t"); ok {
			args = []string{"bash", "-c", "find " + rest + " -type f"}
		}
		if got := labtest.OnNode(t, l, "node-1", args...); got != want {
			t.Errorf("after uninstalling, %s: %q, want %q", show, got, want)
		}
	}
	if links := labtest.OnNode(t, l, "node-1", "ip", "-br", "link"); strings.Contains(links, "tw") {
		t.Errorf("links left behind:\n%s", links)
	}
}

func cniDirs(l *lab.Lab, name string) string {
	d := lab.Dir(l.Name) + "/nodes/" + name + "/cni/"
	return d + "bin " + d + "net.d"
}

// uninstall is the command with the settings of a node's agent.
func uninstall(t *testing.T, l *lab.Lab, name string) string {
	n := labtest.Node(t, l, name)
	dirs := strings.Fields(cniDirs(l, name))
	return "twill uninstall --node-name " + name + " --manifests " + lab.Dir(l.Name) + "/manifests --ovsdb " + n.OVS().Endpoint() +
		" --admin-socket " + n.AdminSocket() + " --cni-socket " + lab.Dir(l.Name) + "/nodes/" + name + "/run/cni.sock" +
		" --cni-plugin twill-cni --cni-bin-dir " + dirs[0] + " --cni-conf-dir " + dirs[1]
}
