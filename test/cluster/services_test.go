//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// kubeProxy installs Twill anew, with serviceProxy=off beside a real kube-proxy on every node: everything works as before,
// and the agents neither look at Services nor may.
func kubeProxy(t *testing.T, c *Cluster, root string) {
	ctx := t.Context()
	before, err := os.Stat(c.AuditLog())
	must(t, err)
	c.KubeProxy = true
	for _, n := range c.Nodes {
		must(t, n.startProxy())
	}
	must(t, c.Install(ctx, root))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.Apply(ctx, root, "coredns.yaml"))
	must(t, c.Apply(ctx, root, "web.yaml"))
	must(t, c.RolledOut(ctx, "kube-system", "deployment/coredns", upTimeout))
	must(t, c.RolledOut(ctx, "default", "daemonset/web", upTimeout))
	must(t, c.RolledOut(ctx, "default", "daemonset/client", upTimeout))
	namesAndServices(t, c)
	nodePort(t, c)
	roles(t, c, before.Size(), "patch nodes/status") // the Nodes' condition is still as the first installation set it
	for _, n := range c.Nodes {
		tables, err := n.Exec(ctx, "nft", "list", "tables")
		must(t, err)
		if !strings.Contains(tables, "kube-proxy") {
			t.Errorf("%s: kube-proxy has no table, so who serves Services? %s", n.Name, tables)
		}
	}
}

func namesAndServices(t *testing.T, c *Cluster) {
	ctx := t.Context()
	ips, err := c.Kubectl(ctx, "get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")
	must(t, err)
	for _, from := range podsOf(t, c, "app=client") {
		must(t, Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
			out, err := c.Exec(ctx, from.Name, "nslookup", "web.default.svc.cluster.local")
			if err != nil {
				return err
			}
			for ip := range strings.FieldsSeq(ips) {
				if !strings.Contains(out, ip) {
					return fmt.Errorf("%s: nslookup has no %s: %s", from.Node, ip, out)
				}
			}
			return nil
		}))
		var said []string
		for ip := range strings.FieldsSeq(ips) {
			url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String() + "/hostname"
			out, err := c.Exec(ctx, from.Name, "sh", "-c", "for i in $(seq 20); do timeout "+slowly()+" wget -qO- "+url+" || echo FAILED; done")
			if err != nil || strings.Contains(out, "FAILED") || len(strings.Fields(out)) != 20 {
				t.Errorf("%s: %s, twenty times: %q, %v", from.Node, url, out, err)
			}
			said = append(said, strings.Fields(out)...)
		}
		slices.Sort(said)
		if backends := slices.Compact(said); len(backends) != len(c.Nodes) {
			t.Errorf("%s: the Service led to %v, want all of %d pods", from.Node, backends, len(c.Nodes))
		}
	}
}

// manyTries are enough to meet each of two servers: all of them meet the same one once in 2^39 times.
const manyTries = 40

// webNodePort is the nodePort in testdata/web.yaml.
const webNodePort = "30080"

// askHostname asks the web server at $0, port $1, for the name of its pod: with nothing but bash, which nodes and the
// host beyond the cluster have.
const askHostname = `exec 3<>"/dev/tcp/$0/$1" && printf 'GET /hostname HTTP/1.0\r\n\r\n' >&3 && tail -n1 <&3`

// nodePort: every node's address leads to all web servers, from beyond the cluster, from nodes and from pods.
func nodePort(t *testing.T, c *Cluster) {
	ctx := t.Context()
	var backends []string
	for _, p := range podsOf(t, c, "app=web") {
		backends = append(backends, p.Name)
	}
	slices.Sort(backends)
	for _, to := range c.Nodes {
		for _, ip := range strings.Split(c.families(to.IP(), to.IP6()), ",") {
			ask := []string{"timeout", slowly(), "bash", "-c", askHostname, ip, webNodePort}
			var said []string
			for range manyTries {
				out, err := outside(ctx, c, ask...)
				if err != nil {
					t.Errorf("from beyond the cluster to %s: %v", ip, err)
					break
				}
				if !slices.Contains(said, out) {
					said = append(said, out)
				}
				if len(said) == len(backends) {
					break
				}
			}
			if slices.Sort(said); !slices.Equal(said, backends) {
				t.Errorf("from beyond the cluster to %s: the NodePort led to %q, want all of %q", ip, said, backends)
			}
			for _, from := range c.Nodes {
				if out, err := from.Exec(ctx, ask...); err != nil || !slices.Contains(backends, out) {
					t.Errorf("from %s to %s: %q, %v", from.Name, ip, out, err)
				}
			}
			url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip), 30080).String() + "/hostname"
			for _, from := range podsOf(t, c, "app=client") {
				if out, err := c.Exec(ctx, from.Name, "timeout", slowly(), "wget", "-qO-", url); err != nil || !slices.Contains(backends, out) {
					t.Errorf("from a pod of %s to %s: %q, %v", from.Node, ip, out, err)
				}
			}
		}
	}
}

// outside runs a command on the host beyond the cluster, and returns what it printed.
func outside(ctx context.Context, c *Cluster, argv ...string) (string, error) {
	args := append([]string{"--net=" + netnsPath(c.namespace("net"))}, argv...)
	out, err := exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
	said := strings.TrimSpace(string(out))
	if err != nil {
		return said, fmt.Errorf("%w: %s", err, said)
	}
	return said, nil
}
