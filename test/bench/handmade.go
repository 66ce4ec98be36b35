package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/twill-net/twill/test/lab"
)

// handPort is the UDP port of the tunnel made by hand; Twill has the usual one.
const handPort = 6082

// handMade gives each node of the lab a second bridge with two flows for a pair of namespaces on one node,
// and two for a pair on different ones. Neighbours are fixed, so nothing but those flows is at work.
func handMade(ctx context.Context, l *lab.Lab) (ends [3]end, err error) {
	node := [3]string{"node-1", "node-1", "node-2"}
	mac := func(i int) string { return fmt.Sprintf("0a:00:00:00:00:%02x", i+1) }
	for i := range ends {
		ends[i] = end{namespace(l, fmt.Sprintf("hand%d", i)), netip.AddrFrom4([4]byte{198, 19, 99, byte(i + 1)})}
	}
	onNode := func(name string, args ...string) error {
		out, err := l.NodeExec(ctx, name, args...)
		if err == nil && out.Code != 0 {
			err = fmt.Errorf("exit code %d: %s", out.Code, out.Stderr)
		}
		if err != nil {
			return fmt.Errorf("on %s: %s: %w", name, strings.Join(args, " "), err)
		}
		return nil
	}
	for _, name := range []string{"node-1", "node-2"} {
		if err := onNode(name, "ovs-vsctl", "add-br", "br-hand", "--", "set", "Bridge", "br-hand", "datapath_type=netdev", "fail_mode=secure",
			"--", "add-port", "br-hand", "hand-tun", "--", "set", "Interface", "hand-tun", "type=geneve", "ofport_request=100",
			"options:remote_ip=flow", "options:key=flow", fmt.Sprintf("options:dst_port=%d", handPort)); err != nil {
			return ends, err
		}
	}
	for i, e := range ends {
		n, err := l.Node(node[i])
		if err != nil {
			return ends, err
		}
		port := fmt.Sprintf("hand%d", i)
		lines := []string{
			"netns add " + e.ns,
			fmt.Sprintf("link add %s netns %s type veth peer name eth0 netns %s mtu 1450 address %s", port, n.NetNS(), e.ns, mac(i)),
			fmt.Sprintf("-n %s link set %s up", n.NetNS(), port),
			fmt.Sprintf("-n %s address add %s/24 dev eth0", e.ns, e.address),
			"-n " + e.ns + " link set eth0 up",
		}
		for j, peer := range ends {
			if j != i {
				lines = append(lines, fmt.Sprintf("-n %s neigh replace %s lladdr %s dev eth0 nud permanent", e.ns, peer.address, mac(j)))
			}
		}
		for _, line := range lines {
			if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				return ends, fmt.Errorf("ip %s: %w: %s", line, err, out)
			}
		}
		// As Twill does on the userspace datapath: checksums are complete when a packet enters the bridge.
		if err := onNode(node[i], "ethtool", "-K", port, "tx", "off"); err != nil {
			return ends, err
		}
		if out, err := command(ctx, e.ns, "ethtool", "-K", "eth0", "tx", "off").CombinedOutput(); err != nil {
			return ends, fmt.Errorf("ethtool: %w: %s", err, out)
		}
		if err := onNode(node[i], "ovs-vsctl", "add-port", "br-hand", port, "--", "set", "Interface", port, fmt.Sprintf("ofport_request=%d", i+1)); err != nil {
			return ends, err
		}
	}
	remote := func(name string) string {
		n, _ := l.Node(name)
		return n.Addresses()[0].String()
	}
	send := func(to string) string {
		return "set_field:" + remote(to) + "->tun_dst,set_field:99->tun_id,output:100"
	}
	for name, flows := range map[string][]string{
		"node-1": {
			"in_port=1,dl_dst=" + mac(1) + ",actions=output:2", "in_port=2,actions=output:1",
			"in_port=1,dl_dst=" + mac(2) + ",actions=" + send("node-2"), "in_port=100,actions=output:1",
		},
		"node-2": {"in_port=3,actions=" + send("node-1"), "in_port=100,actions=output:3"},
	} {
		for _, f := range flows {
			if err := onNode(name, "ovs-ofctl", "add-flow", "br-hand", f); err != nil {
				return ends, err
			}
		}
	}
	return ends, nil
}

// command runs a program inside a named network namespace.
func command(ctx context.Context, ns string, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + ns, "--"}, argv...)...)
}
