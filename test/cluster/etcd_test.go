//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// restoreEtcd puts etcd back to a backup, in which there is a policy that has been deleted since, and are no pods that
// have been created since. The components of Kubernetes are restarted then, as etcd's documentation asks for; the agents
// are not, and have to find out.
func restoreEtcd(t *testing.T, c *Cluster) {
	ctx, root := t.Context(), checkout(t)
	agents := podNames(t, c, "agent")
	must(t, c.Apply(ctx, root, "deny.yaml"))
	must(t, c.denied(ctx))
	before := attachments(t, c)

	must(t, c.stopAPI())
	must(t, os.CopyFS(c.path("etcd-backup"), os.DirFS(c.path("etcd"))))
	must(t, c.startAPI(ctx))
	must(t, c.Ready(ctx, upTimeout))
	_, err := c.Kubectl(ctx, "delete", "networkpolicy", "web-deny")
	must(t, err)
	_, err = c.Kubectl(ctx, "scale", "deployment/crowd", "--replicas=6")
	must(t, err)
	must(t, c.RolledOut(ctx, "default", "deployment/crowd", upTimeout))
	whole(t, c)

	must(t, c.stopAPI())
	must(t, os.RemoveAll(c.path("etcd")))
	must(t, os.Rename(c.path("etcd-backup"), c.path("etcd")))
	must(t, os.Chmod(c.path("etcd"), 0o700))
	began := time.Now()
	must(t, c.startAPI(ctx))
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		must(t, c.StopControl(name))
	}
	must(t, c.StartControllers())
	for _, n := range c.Nodes {
		must(t, n.Stop("kubelet", syscall.SIGKILL))
		must(t, n.StartKubelet())
	}
	must(t, c.denied(ctx))
	t.Logf("from the API server's start to a policy of the backup in force: %s", time.Since(began).Round(100*time.Millisecond))
	must(t, Eventually(ctx, upTimeout, func(context.Context) error {
		if now := attachments(t, c); !slices.Equal(now, before) {
			return fmt.Errorf("ports and veths of the nodes: %v, at the time of the backup %v", now, before)
		}
		return nil
	}))
	// And what happens from now on is followed.
	_, err = c.Kubectl(ctx, "delete", "networkpolicy", "web-deny")
	must(t, err)
	whole(t, c)
	if now := podNames(t, c, "agent"); now != agents {
		t.Errorf("agents were replaced: %s, then %s", agents, now)
	}
	restarts, err := c.Kubectl(ctx, "-n", TwillNamespace, "logs", "-l", "app.kubernetes.io/component=agent", "--tail=-1")
	must(t, err)
	if !strings.Contains(restarts, "etcd was restored") {
		t.Error("no agent's log says that etcd was restored")
	}
}

// stopAPI ends the API server and its etcd.
func (c *Cluster) stopAPI() error {
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if err := c.StopControl(name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startAPI(ctx context.Context) error {
	if err := c.StartEtcd(); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// denied waits until no client reaches a web server. After a loss of the API server client-go may wait a minute before it lists.
func (c *Cluster) denied(ctx context.Context) error {
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		servers, err := c.Pods(ctx, "app=web")
		if err != nil {
			return err
		}
		clients, err := c.Pods(ctx, "app=client")
		if err != nil {
			return err
		}
		if len(servers) == 0 || len(clients) == 0 {
			return fmt.Errorf("%d servers and %d clients", len(servers), len(clients))
		}
		for _, from := range clients {
			for _, to := range servers {
				for _, ip := range to.IPs {
					out, _ := c.Exec(ctx, from.Name, "ping", "-c1", "-W1", ip)
					if !strings.Contains(out, "100% packet loss") {
						return fmt.Errorf("%s to %s, which the policy denies: %s", from.Node, to.Node, out)
					}
				}
			}
		}
		return nil
	})
}

// attachments counts what each node has for its pods.
func attachments(t *testing.T, c *Cluster) []string {
	t.Helper()
	var all []string
	for _, n := range c.Nodes {
		ports, veths, err := n.Attachments(t.Context())
		must(t, err)
		all = append(all, fmt.Sprintf("%s: %d ports, %d veths", n.Name, ports, veths))
	}
	return all
}
