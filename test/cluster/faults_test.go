//go:build e2e

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
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
			away, cancel := context.WithTimeout(ctx, 20*time.Second)
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
			whole(t, c)
		}},
		{"a crowd after all that", func(t *testing.T) {
			// Sandboxes do fail where a kubelet is up again before the agent is; from now on none may.
			_, err := c.Kubectl(ctx, "delete", "events", "--all")
			must(t, err)
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
// test if an answer is missing. It enters the pod by its process, so that nothing but the network can interrupt it.
func (c *Cluster) pinging(t *testing.T) func() {
	t.Helper()
	ctx := t.Context()
	from, to := c.Nodes[0], c.Nodes[1]
	servers := podsOf(t, c, "app=web")
	target := servers[slices.IndexFunc(servers, func(p Pod) bool { return p.Node == to.Name })]
	clients := podsOf(t, c, "app=client")
	source := clients[slices.IndexFunc(clients, func(p Pod) bool { return p.Node == from.Name })]
	// Its network namespace is the one that has its address.
	script := `for s in /run/netns/*; do nsenter --net="$s" ip -o addr show to ` + source.IPs[0] + ` 2>/dev/null | grep -q . && exec nsenter --net="$s" ping -i 0.05 -W1 ` + target.IPs[0] + `; done; echo no namespace`
	cmd := from.Command(ctx, "sh", "-c", script)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	return func() {
		t.Helper()
		_, err := from.Exec(ctx, "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" = "ping -i 0.05 -W1 `+target.IPs[0]+` " ] && kill -INT "${p#/proc/}"; done; true`)
		must(t, err)
		_ = cmd.Wait()
		sent, received := pingSummary(t, out.String())
		t.Logf("%d of %d packets arrived", received, sent)
		if sent < 10 || received != sent {
			t.Errorf("%d packets sent, %d came back", sent, received)
		}
	}
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

// TestPodsByTheHundred: a hundred pods come and go; how long each took from being scheduled to running.
func TestPodsByTheHundred(t *testing.T) {
	c := up(t, Options{Name: "pods", Nodes: 2, DualStack: true})
	ctx, root := t.Context(), checkout(t)
	must(t, c.Install(ctx, root))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.Apply(ctx, root, "web.yaml"))
	whole(t, c)
	stop := c.watchStarts(t)
	crowd(t, c, 100)
	starts := stop()
	slices.Sort(starts)
	if len(starts) < 100 {
		t.Fatalf("%d pods were seen to start, want 100", len(starts))
	}
	t.Logf("pod start: p50 %s, p99 %s", starts[len(starts)/2], starts[len(starts)*99/100])
}

// watchStarts notes of every pod of the crowd how long it took from being scheduled to running, to the second.
func (c *Cluster) watchStarts(t *testing.T) func() []time.Duration {
	t.Helper()
	cmd := c.ControlCommand(t.Context(), "kubectl", "get", "pods", "-l", "app=crowd", "--watch", "-o", "json")
	var out strings.Builder
	cmd.Stdout = &out
	must(t, cmd.Start())
	return func() []time.Duration {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		took := map[string]time.Duration{}
		documents := json.NewDecoder(strings.NewReader(out.String()))
		for {
			var pod struct {
				Metadata struct{ Name string }
				Status   struct {
					Conditions []struct {
						Type, Status       string
						LastTransitionTime time.Time
					}
				}
			}
			if documents.Decode(&pod) != nil {
				break
			}
			var scheduled, ready time.Time
			for _, condition := range pod.Status.Conditions {
				switch {
				case condition.Status != "True":
				case condition.Type == "PodScheduled":
					scheduled = condition.LastTransitionTime
				case condition.Type == "Ready":
					ready = condition.LastTransitionTime
				}
			}
			if !scheduled.IsZero() && !ready.IsZero() {
				took[pod.Metadata.Name] = ready.Sub(scheduled)
			}
		}
		var all []time.Duration
		for _, d := range took {
			all = append(all, d)
		}
		return all
	}
}
