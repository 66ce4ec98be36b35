package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// TwillNamespace is where the tests install the chart.
const TwillNamespace = "twill-system"

// Install installs the chart of a checkout, or upgrades to it, and returns when Helm has sent everything.
func (c *Cluster) Install(ctx context.Context, checkout string, set ...string) error {
	args := []string{"upgrade", "--install", "twill", filepath.Join(checkout, "charts/twill"), "--namespace", TwillNamespace, "--create-namespace",
		"--set", "image.repository=" + TwillRepository, "--set", "image.tag=" + TwillTag, "--set", "image.pullPolicy=Never",
		"--set", "apiServer=" + APIServer, "--set", "ovs.mode=" + string(c.OVS),
		"--set", "clusterCIDRs={" + c.families(PodCIDR, PodCIDR6) + "}", "--set", "agent.logFormat=text"}
	if c.KubeProxy {
		args = append(args, "--set-string", "serviceProxy=off")
	}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	_, err := c.Helm(ctx, args...)
	return err
}

// Apply applies a file of this package's testdata.
func (c *Cluster) Apply(ctx context.Context, checkout, file string) error {
	_, err := c.Kubectl(ctx, "apply", "-f", filepath.Join(checkout, "test/cluster/testdata", file))
	return err
}

// RolledOut waits until a DaemonSet or Deployment, such as "daemonset/web", has all its pods available; lab.Slow times as
// long on a slow machine.
func (c *Cluster) RolledOut(ctx context.Context, namespace, what string, within time.Duration) error {
	_, err := c.Kubectl(ctx, "-n", namespace, "rollout", "status", what, "--timeout", patiently(within))
	return err
}

// Pod is what the tests want to know of a pod.
type Pod struct {
	Name, Node string
	// IPs are its addresses, IPv4 first.
	IPs []string
}

// Pods lists the pods with a label, such as "app=web", in the namespace default.
func (c *Cluster) Pods(ctx context.Context, label string) ([]Pod, error) {
	out, err := c.Kubectl(ctx, "get", "pods", "-l", label, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ NodeName string }
			Status   struct{ PodIPs []struct{ IP string } }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	var pods []Pod
	for _, i := range list.Items {
		p := Pod{Name: i.Metadata.Name, Node: i.Spec.NodeName}
		for _, ip := range i.Status.PodIPs {
			p.IPs = append(p.IPs, ip.IP)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Exec runs a command in a pod of the namespace default.
func (c *Cluster) Exec(ctx context.Context, pod string, argv ...string) (string, error) {
	return c.Kubectl(ctx, append([]string{"exec", pod, "--"}, argv...)...)
}

// findPodNetNS prints the path, on a node, of the network namespace that has the address $1; nothing if there is none.
const findPodNetNS = `for s in /run/netns/*; do nsenter --net="$s" ip -o addr show to "$1" 2>/dev/null | grep -q . && echo "$s" && break; done`

// PodNetNS is the path, on this machine, of the network namespace of the node's pod that has an address.
func (n *Node) PodNetNS(ctx context.Context, address string) (string, error) {
	path, err := n.Exec(ctx, "sh", "-c", findPodNetNS, "sh", address)
	if err != nil || path == "" {
		return "", fmt.Errorf("%s has no pod with address %s: %w", n.Name, address, cmp.Or(err, errors.New("no network namespace has it")))
	}
	return fmt.Sprintf("/proc/%d/root%s", n.PID(), path), nil
}

// Left lists what of Twill is on the node: bridge ports, links, nftables tables, routes, CNI files, sockets.
func (n *Node) Left(ctx context.Context) ([]string, error) {
	var left []string
	for _, look := range []struct{ what, script string }{
		{"bridge", "ovs-vsctl --timeout=5 list-br | grep -x br-twill || true"},
		{"port", "ovs-vsctl --timeout=5 --if-exists list-ports br-twill 2>/dev/null || true"},
		{"link", `ip -o link | awk -F': ' '{print $2}' | grep -E '^(tw|twill)' || true`},
		{"route", "ip route show proto 119; ip -6 route show proto 119"},
		{"nftables", "nft list tables | grep -w twill || true"},
		{"file", "ls /etc/cni/net.d/*twill* /opt/cni/bin/twill-cni 2>/dev/null || true"},
		{"socket", "ls /run/twill 2>/dev/null || true"},
	} {
		out, err := n.Exec(ctx, "sh", "-c", look.script)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			left = append(left, n.Name+": "+look.what+" "+strings.TrimSpace(line))
		}
	}
	return left, nil
}

// Attachments counts what the node has for its pods: ports of the bridge, and veths on the host.
func (n *Node) Attachments(ctx context.Context) (ports, veths int, err error) {
	out, err := n.Exec(ctx, "sh", "-c", "ovs-vsctl --timeout=5 list-ports br-twill | wc -l; ip -o link show type veth | wc -l")
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(out, &ports, &veths)
	return ports, veths, err
}

// Describe is what somebody would look at first when something does not work.
func (c *Cluster) Describe(ctx context.Context) string {
	var out strings.Builder
	for _, args := range [][]string{
		{"get", "nodes", "-o", "wide"}, {"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", TwillNamespace, "logs", "-l", "app.kubernetes.io/name=twill", "--all-containers", "--prefix", "--tail=200"},
	} {
		said, err := c.Kubectl(ctx, args...)
		fmt.Fprintf(&out, "--- kubectl %s\n%s\n", strings.Join(args, " "), said)
		if err != nil {
			fmt.Fprintln(&out, err)
		}
	}
	agents, _ := c.Kubectl(ctx, "-n", TwillNamespace, "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "jsonpath={.items[*].metadata.name}")
	for pod := range strings.FieldsSeq(agents) {
		said, _ := c.Kubectl(ctx, "-n", TwillNamespace, "exec", pod, "--", "twill", "status")
		fmt.Fprintf(&out, "--- %s: twill status\n%s\n", pod, said)
	}
	for _, n := range c.Nodes {
		for _, words := range []string{
			"ip -br addr", "ip route", "ip -6 route", "ip neigh", "ip -6 neigh", "nft list table inet twill",
			// Userspace Open vSwitch finds its own way to the other end of a tunnel.
			"ovs-appctl ovs/route/show", "ovs-appctl tnl/neigh/show", "ovs-appctl dpctl/dump-flows -m",
		} {
			said, err := n.Exec(ctx, "sh", "-c", "timeout 10 "+words+" 2>&1")
			fmt.Fprintf(&out, "--- %s: %s\n%s\n", n.Name, words, said)
			if err != nil {
				fmt.Fprintln(&out, err)
			}
		}
	}
	return out.String() + c.LogTails(12)
}
