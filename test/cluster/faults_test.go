//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFaults breaks what breaks in real clusters, one after the other, and looks whether everything works again by
// itself, and whether pods noticed that should not.
func TestFaults(t *testing.T) {
	c := up(t, Options{Name: "faults", Nodes: 2, DualStack: true})
	ctx, root := t.Context(), checkout(t)
	must(t, c.Install(ctx, root))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.Apply(ctx, root, "web.yaml"))
	whole(t, c)
	node := c.Nodes[1]
	steps := []struct {
		name string
		run  func(*testing.T)
	}{
		{"the kubelet restarts", func(t *testing.T) {
			check := c.pinging(t)
			must(t, node.Stop("kubelet", syscall.SIGKILL))
			must(t, node.StartKubelet())
			whole(t, c)
			check()
		}},
		{"containerd restarts", func(t *testing.T) {
			check := c.pinging(t)
			must(t, node.Stop("containerd", syscall.SIGKILL))
			must(t, node.StartContainerd(ctx))
			whole(t, c)
			check()
		}},
		{"the API server is away", func(t *testing.T) {
			check := c.pinging(t)
			must(t, c.StopControl("kube-apiserver"))
			away, cancel := context.WithTimeout(ctx, time.Minute)
			<-away.Done()
			cancel()
			check() // kubectl exec itself goes by the API server, and does not have to: see pinging
			must(t, c.StartAPIServer(ctx))
			whole(t, c)
		}},
		{"the agents are killed", func(t *testing.T) {
			check := c.pinging(t)
			for _, n := range c.Nodes {
				_, err := n.Exec(ctx, "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null | cut -d' ' -f1-2)" = "twill agent" ] && kill -9 "${p#/proc/}"; done; true`)
				must(t, err)
			}
			whole(t, c)
			check()
		}},
		{"a node loses its power", func(t *testing.T) {
			began := time.Now()
			must(t, node.Reboot(ctx))
			whole(t, c)
			t.Logf("from power off to pods that reach each other: %s", time.Since(began).Round(time.Second))
		}},
		{"a node is deleted and joins under the same name", func(t *testing.T) {
			must(t, node.Stop("kubelet", syscall.SIGKILL))
			_, err := c.Kubectl(ctx, "delete", "node", node.Name)
			must(t, err)
			must(t, node.StartKubelet())
			must(t, c.Ready(ctx, upTimeout))
			// It has another podCIDR now, and its pods the addresses of the old one: an administrator drains a node before.
			_, err = c.Kubectl(ctx, "delete", "pods", "-l", "app in (web,client)", "--field-selector", "spec.nodeName="+node.Name, "--wait")
			must(t, err)
			whole(t, c)
		}},
		{"etcd is restored to an older state", func(t *testing.T) { restoreEtcd(t, c) }},
		{"a crowd after all that", func(t *testing.T) {
			// Sandboxes do fail where a kubelet is up again before the agent is; from now on none may.
			must(t, c.forgetEvents(ctx))
			crowd(t, c, 10)
		}},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.run) {
			return
		}
		c.step("%s", s.name)
	}
}

// whole waits until all nodes are Ready, the agents and pods too, and every pod reaches every other.
func whole(t *testing.T, c *Cluster) {
	t.Helper()
	ctx := t.Context()
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	must(t, Eventually(ctx, upTimeout, func(ctx context.Context) error {
		for _, label := range []string{"app=web", "app=client"} {
			pods, err := c.Pods(ctx, label)
			if err != nil {
				return err
			}
			if len(pods) != len(c.Nodes) || slices.ContainsFunc(pods, func(p Pod) bool { return len(p.IPs) == 0 }) {
				return fmt.Errorf("pods with %s are %v", label, pods)
			}
		}
		servers, err := c.Pods(ctx, "app=web")
		if err != nil {
			return err
		}
		clients, err := c.Pods(ctx, "app=client")
		if err != nil {
			return err
		}
		for _, from := range clients {
			for _, to := range servers {
				for _, ip := range to.IPs {
					if out, err := c.Exec(ctx, from.Name, "ping", "-c1", "-W2", ip); err != nil {
						return fmt.Errorf("%s to %s: %w: %s", from.Node, to.Node, err, out)
					}
				}
			}
		}
		return nil
	}))
}

// pinging begins to ping a pod of the second node from a pod of the first; what it returns ends that, and fails the
// test if an answer is missing.
func (c *Cluster) pinging(t *testing.T) func() {
	t.Helper()
	ctx := t.Context()
	from := c.Nodes[0]
	target := c.podOn(t, c.Nodes[1], "app=web").IPs[0]
	cmd := from.inPod(ctx, c.podOn(t, from, "app=client"), "exec ping -i 0.05 -W1 "+target)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	return func() {
		t.Helper()
		_, err := from.Exec(ctx, "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" = "ping -i 0.05 -W1 `+target+` " ] && kill -INT "${p#/proc/}"; done; true`)
		must(t, err)
		_ = cmd.Wait()
		sent, received := pingSummary(t, out.String())
		t.Logf("%d of %d packets arrived", received, sent)
		if sent < 10 || received != sent {
			t.Errorf("%d packets sent, %d came back", sent, received)
		}
	}
}

// podOn is the pod of a node that has a label.
func (c *Cluster) podOn(t *testing.T, n *Node, label string) Pod {
	t.Helper()
	pods := podsOf(t, c, label)
	i := slices.IndexFunc(pods, func(p Pod) bool { return p.Node == n.Name })
	if i < 0 {
		t.Fatalf("%s: no pod with %s: %v", n.Name, label, pods)
	}
	return pods[i]
}

// inPod is a shell's script that will run in the network namespace of a pod of the node, with the node's programs: nothing
// but the network can interrupt it. The namespace is the one that has the pod's address.
func (n *Node) inPod(ctx context.Context, p Pod, script string) *exec.Cmd {
	return n.Command(ctx, "sh", "-c", "found=$("+findPodNetNS+`); [ "$found" ] && exec nsenter --net="$found" bash -c "$2"; echo no namespace`, "sh", p.IPs[0], script)
}

func pingSummary(t *testing.T, out string) (sent, received int) {
	t.Helper()
	for line := range strings.Lines(out) {
		if n, _ := fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received); n == 2 {
			return sent, received
		}
	}
	t.Fatalf("no summary of ping: %s", out)
	return 0, 0
}
