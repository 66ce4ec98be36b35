//go:build e2e

package cluster

import (
	"strings"
	"testing"
)

// Open vSwitch in pods: one node, because where the kernel has no datapath tunnels need the node's address on a bridge
// of userspace Open vSwitch, which no pod can be started without.
func TestOpenVSwitchInPods(t *testing.T) {
	c := up(t, Options{Name: "ovs", Nodes: 1, DualStack: true, OVS: OVSPod})
	ctx, root := t.Context(), checkout(t)
	must(t, c.Install(ctx, root))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-ovs", upTimeout))
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
	uninstall(t, c)
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
