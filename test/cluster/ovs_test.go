//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/host"
)

// TestOpenVSwitchInPods: Open vSwitch in pods, the chart's default. Where the kernel has no datapath, tunnels need the
// node's address on a bridge of the same userspace Open vSwitch, which cannot be before that runs: it is moved there then.
func TestOpenVSwitchInPods(t *testing.T) {
	c := up(t, Options{Name: "ovs", Nodes: 2, DualStack: true, OVS: OVSPod})
	ctx, root := t.Context(), checkout(t)
	must(t, c.Install(ctx, root))
	must(t, c.availableOVS(ctx))
	for _, n := range c.Nodes {
		must(t, n.addressToOVS(ctx))
	}
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	privileged, err := c.Kubectl(ctx, "-n", TwillNamespace, "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].securityContext.privileged}")
	must(t, err)
	if strings.Contains(privileged, "true") {
		t.Error("a container of the chart is privileged")
	}
	must(t, c.Apply(ctx, root, "coredns.yaml"))
	must(t, c.RolledOut(ctx, "kube-system", "deployment/coredns", upTimeout))
	podsReachEachOther(t, c, root)
	ovsBefore := podNames(t, c, "ovs")
	roll(t, c)
	if now := podNames(t, c, "ovs"); now != ovsBefore {
		t.Errorf("a roll of the agents replaced the pods of Open vSwitch: %s, then %s", ovsBefore, now)
	}
	for _, n := range c.Nodes {
		must(t, n.addressFromOVS(ctx))
	}
	uninstall(t, c)
}

// availableOVS waits until Open vSwitch runs on every node: kubectl rollout knows nothing of a DaemonSet that is updated
// by hand.
func (c *Cluster) availableOVS(ctx context.Context) error {
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "-n", TwillNamespace, "get", "daemonset", "twill-ovs", "-o", "jsonpath={.status.numberAvailable}")
		if err == nil && out != fmt.Sprint(len(c.Nodes)) {
			err = fmt.Errorf("Open vSwitch is available on %q nodes, want %d", out, len(c.Nodes))
		}
		return err
	})
}

// addressToOVS moves the node's address from its link to a bridge of Open vSwitch that has the link as a port.
func (n *Node) addressToOVS(ctx context.Context) error {
	if host.KernelDatapath() {
		return nil
	}
	return errors.Join(
		ip(ctx, n.NetNS(), "route del default via "+routerIP6+" dev eth0", "addr flush dev eth0"), // takes the IPv4 one along
		n.addPhysicalBridge(ctx),
		ip(ctx, n.NetNS(), configure("br-phy", n.IP(), n.IP6())...),
	)
}

// addressFromOVS undoes addressToOVS: without Open vSwitch the bridge and its address are gone.
func (n *Node) addressFromOVS(ctx context.Context) error {
	if host.KernelDatapath() {
		return nil
	}
	_, err := n.Exec(ctx, "ovs-vsctl", "--timeout=20", "del-br", "br-phy")
	return errors.Join(err, ip(ctx, n.NetNS(), configure("eth0", n.IP(), n.IP6())...))
}

func podNames(t *testing.T, c *Cluster, component string) string {
	t.Helper()
	names, err := c.Kubectl(t.Context(), "-n", TwillNamespace, "get", "pods", "-l", "app.kubernetes.io/component="+component, "-o", "name")
	must(t, err)
	if names == "" {
		t.Fatalf("no pod of component %s", component)
	}
	return names
}
