//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// policies: a NetworkPolicy cuts the web servers off, but not from the node that has to probe them; a second one lets the
// clients in again.
func policies(t *testing.T, c *Cluster, root string) {
	ctx := t.Context()
	servers := podsOf(t, c, "app=web")
	var all []string
	for _, s := range servers {
		for _, ip := range s.IPs {
			all = append(all, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String()+"/hostname")
		}
	}
	slices.Sort(all)
	clients := podsOf(t, c, "app=client")
	// reached waits until every client reaches just these.
	reached := func(want []string) {
		t.Helper()
		must(t, Eventually(ctx, time.Minute, func(ctx context.Context) error {
			for _, from := range clients {
				out, err := c.Exec(ctx, from.Name, "sh", "-c",
					"for u in "+strings.Join(all, " ")+"; do (timeout "+seconds(2)+" wget -qO- $u >/dev/null 2>&1 && echo $u) & done; wait")
				if err != nil {
					return err
				}
				got := strings.Fields(out)
				if slices.Sort(got); !slices.Equal(got, want) {
					return fmt.Errorf("%s reaches %v, want %v", from.Node, got, want)
				}
			}
			return nil
		}))
	}
	reached(all)
	must(t, c.Apply(ctx, root, "deny.yaml"))
	reached(nil)
	for _, s := range servers {
		node := c.Nodes[slices.IndexFunc(c.Nodes, func(n *Node) bool { return n.Name == s.Node })]
		for _, ip := range s.IPs {
			if out, err := node.Exec(ctx, "timeout", slowly(), "bash", "-c", askHostname, ip, "8080"); err != nil || out != s.Name {
				t.Errorf("%s to its own pod %s, as a kubelet probes it: %q, %v", s.Node, ip, out, err)
			}
		}
	}
	out, err := kubectlTwill(ctx, c, "why", "default/"+clients[0].Name, "default/"+servers[0].Name, "--proto", "tcp", "--port", "8080")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(out, "isolate the destination for ingress") || !strings.Contains(out, "default/web-deny") {
		t.Errorf("kubectl twill why says %q, %v; want exit status 3, isolation for ingress and the policy's name", out, err)
	}
	must(t, c.Apply(ctx, root, "allow.yaml"))
	reached(all)
	_, err = c.Kubectl(ctx, "delete", "networkpolicy", "web-deny", "web-allow")
	must(t, err)
	reached(all)
}

// tools asks the agents from beside the API server, as an operator does.
func tools(t *testing.T, c *Cluster) {
	ctx := t.Context()
	repaired := map[string]string{}
	for _, n := range c.Nodes {
		out, err := kubectlTwill(ctx, c, "status", "--on", n.Name)
		if err != nil || !strings.Contains(out, n.Name+", ready") {
			t.Errorf("kubectl twill status --on %s: %v\n%s", n.Name, err, out)
		}
		repaired[n.Name] = repairedLine.FindString(out)
		if out, err := kubectlTwill(ctx, c, "verify", "--on", n.Name); err != nil {
			t.Errorf("kubectl twill verify --on %s: %v\n%s", n.Name, err, out)
		}
	}
	for _, from := range podsOf(t, c, "app=client") {
		for _, to := range podsOf(t, c, "app=web") {
			out, err := kubectlTwill(ctx, c, "trace", "default/"+from.Name, "default/"+to.Name, "--proto", "tcp", "--port", "8080")
			if want := "forwarded to pod default/" + to.Name; err != nil || !strings.Contains(out, want) {
				t.Errorf("kubectl twill trace from %s to %s: %v, want %q in\n%s", from.Node, to.Node, err, want, out)
			}
		}
	}
	// Nothing changes meanwhile: an agent that repairs something quarrels with itself.
	for _, n := range c.Nodes {
		out, err := kubectlTwill(ctx, c, "status", "--on", n.Name)
		if now := repairedLine.FindString(out); err != nil || now == "" || now != repaired[n.Name] {
			t.Errorf("kubectl twill status --on %s: %v: %q, before %q", n.Name, err, now, repaired[n.Name])
		}
	}
}

var repairedLine = regexp.MustCompile(`repaired .*`)

// kubectlTwill runs kubectl with Twill's plugin, which lies beside the cluster's files.
func kubectlTwill(ctx context.Context, c *Cluster, args ...string) (string, error) {
	return c.control(ctx, "", append([]string{"env", "PATH=" + c.path("plugin") + ":" + c.Programs.Dir + ":/usr/bin:/bin", "kubectl", "twill"}, args...)...)
}

func buildPlugin(t *testing.T, c *Cluster) {
	t.Helper()
	_, err := goTool(t.Context(), checkout(t), "build", "-o", c.path("plugin", "kubectl-twill"), "./cmd/twill")
	must(t, err)
}
