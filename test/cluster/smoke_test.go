//go:build e2e

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// slowly is how many seconds an answer may take that has to come: nodes, pods and userspace Open vSwitch may share two
// cores with others.
func slowly() string { return seconds(20) }

// seconds are what timeout(1) and ping(8) take: lab.Slow times as many on a slow machine.
func seconds(n int) string { return strconv.Itoa(n * int(lab.Slow())) }

func TestSmoke(t *testing.T) {
	c := up(t, Options{Name: "smoke", Nodes: 2, DualStack: true})
	ctx, root := t.Context(), checkout(t)
	steps := []struct {
		name string
		run  func(*testing.T)
	}{
		{"nodes become Ready without a restart of anything", func(t *testing.T) {
			began := time.Now()
			must(t, c.Install(ctx, root))
			must(t, c.Ready(ctx, upTimeout))
			t.Logf("from helm install to all nodes Ready: %s", time.Since(began).Round(100*time.Millisecond))
			must(t, c.Apply(ctx, root, "coredns.yaml"))
			must(t, c.RolledOut(ctx, "kube-system", "deployment/coredns", upTimeout))
			must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
			t.Logf("from helm install to CoreDNS: %s", time.Since(began).Round(100*time.Millisecond))
			restarts, err := c.Kubectl(ctx, "get", "pods", "-A", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
			must(t, err)
			if strings.Trim(restarts, "0 ") != "" {
				t.Errorf("containers restarted: %s", restarts)
			}
		}},
		{"the Node says that its network is available", func(t *testing.T) {
			must(t, Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
				out, err := c.Kubectl(ctx, "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="NetworkUnavailable")].status}`)
				if err == nil && out != "False False" {
					err = fmt.Errorf("conditions NetworkUnavailable are %q", out)
				}
				return err
			}))
		}},
		{"pods reach each other", func(t *testing.T) { podsReachEachOther(t, c, root) }},
		{"names and Services", func(t *testing.T) { namesAndServices(t, c) }},
		{"NodePorts", func(t *testing.T) { nodePort(t, c) }},
		{"an operator's tools answer", func(t *testing.T) { buildPlugin(t, c); tools(t, c) }},
		{"policies", func(t *testing.T) { policies(t, c, root) }},
		{"a crowd comes and goes", func(t *testing.T) { crowd(t, c, max(4, 20/int(lab.Slow()))) }},
		{"a roll of the agents loses no packet", func(t *testing.T) { roll(t, c) }},
		{"the roles allow what is asked for and no more", func(t *testing.T) { roles(t, c, 0) }},
		{"the roles are documented", func(t *testing.T) { documentedRoles(t, c, root) }},
		{"uninstalled, nothing is left", func(t *testing.T) { uninstall(t, c) }},
		{"installed again, beside kube-proxy", func(t *testing.T) { kubeProxy(t, c, root) }},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.run) {
			return // what follows builds on it
		}
		c.step("%s", s.name)
	}
}

// podsReachEachOther: every pair of clients and servers, same node and other, both families, small and larger than
// any MTU.
func podsReachEachOther(t *testing.T, c *Cluster, root string) {
	ctx := t.Context()
	must(t, c.Apply(ctx, root, "web.yaml"))
	must(t, c.RolledOut(ctx, "default", "daemonset/web", upTimeout))
	must(t, c.RolledOut(ctx, "default", "daemonset/client", upTimeout))
	servers, clients := podsOf(t, c, "app=web"), podsOf(t, c, "app=client")
	tried := 0
	for _, from := range clients {
		for _, to := range servers {
			if len(to.IPs) != len(c.ClusterCIDRs()) {
				t.Fatalf("pod %s has addresses %v, want one of each of %v", to.Name, to.IPs, c.ClusterCIDRs())
			}
			for _, ip := range to.IPs {
				if out, err := c.Exec(ctx, from.Name, "ping", "-c1", "-W", slowly(), "-s", "4000", ip); err != nil {
					t.Errorf("%s to %s: %v: %s", from.Node, to.Node, err, out)
				}
				url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String() + "/hostname"
				if out, err := c.Exec(ctx, from.Name, "timeout", slowly(), "wget", "-qO-", url); err != nil || out != to.Name {
					t.Errorf("%s to %s: %s says %q, want %q: %v", from.Node, to.Node, url, out, to.Name, err)
				}
				tried++
			}
		}
	}
	if want := len(c.Nodes) * len(c.Nodes) * len(c.ClusterCIDRs()); tried != want {
		t.Errorf("tried %d ways, want %d", tried, want)
	}
	// Nodes reach pods, and pods the outside.
	for _, n := range c.Nodes {
		if out, err := n.Exec(ctx, "ping", "-c1", "-W", slowly(), servers[0].IPs[0]); err != nil {
			t.Errorf("%s: %v: %s", n.Name, err, out)
		}
	}
	for _, from := range clients {
		if out, err := c.Exec(ctx, from.Name, "ping", "-c1", "-W", slowly(), OutsideIP); err != nil {
			t.Errorf("%s to the outside: %v: %s", from.Node, err, out)
		}
	}
}

func podsOf(t *testing.T, c *Cluster, label string) []Pod {
	t.Helper()
	pods, err := c.Pods(t.Context(), label)
	must(t, err)
	if len(pods) != len(c.Nodes) {
		t.Fatalf("%s: %d pods, want %d", label, len(pods), len(c.Nodes))
	}
	return pods
}

// crowd scales a Deployment up and down again.
func crowd(t *testing.T, c *Cluster, size int) {
	ctx := t.Context()
	type count struct{ ports, veths int }
	counts := func(ctx context.Context) (all []count, err error) {
		for _, n := range c.Nodes {
			ports, veths, err := n.Attachments(ctx)
			if err != nil {
				return nil, err
			}
			all = append(all, count{ports, veths})
		}
		return all, nil
	}
	before, err := counts(ctx)
	must(t, err)
	began := time.Now()
	_, err = c.Kubectl(ctx, "scale", "deployment/crowd", fmt.Sprint("--replicas=", size))
	must(t, err)
	must(t, c.RolledOut(ctx, "default", "deployment/crowd", crowdTimeout))
	t.Logf("0 to %d pods: %s", size, time.Since(began).Round(100*time.Millisecond))
	more := 0
	crowded, err := counts(ctx)
	must(t, err)
	for i, n := range crowded {
		more += n.ports - before[i].ports
	}
	if more != size {
		t.Errorf("the bridges have %d more ports, want %d", more, size)
	}
	began = time.Now()
	_, err = c.Kubectl(ctx, "scale", "deployment/crowd", "--replicas=0")
	must(t, err)
	_, err = c.Kubectl(ctx, "wait", "--for=delete", "pod", "-l", "app=crowd", "--timeout="+patiently(crowdTimeout))
	must(t, err)
	// Without a grace period the API forgets a pod before its node has taken it down.
	must(t, Eventually(ctx, upTimeout, func(ctx context.Context) error {
		after, err := counts(ctx)
		if err == nil && !slices.Equal(after, before) {
			err = fmt.Errorf("ports and veths of the nodes: %v, before the crowd %v", after, before)
		}
		return err
	}))
	t.Logf("%d to 0 pods: %s", size, time.Since(began).Round(100*time.Millisecond))
	events, err := c.Kubectl(ctx, "get", "events", "--field-selector", "reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
	must(t, err)
	if events != "" {
		t.Errorf("sandboxes failed: %s", events)
	}
	for _, n := range c.Nodes {
		pods, err := c.Kubectl(ctx, "get", "pods", "-A", "--field-selector", "spec.nodeName="+n.Name, "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.hostNetwork} {end}`)
		must(t, err)
		used, err := n.Exec(ctx, "sh", "-c", `ovs-vsctl --timeout=5 --bare --columns=external_ids list interface | grep -c twill-pod`)
		must(t, err)
		if want := fmt.Sprint(len(strings.Fields(pods)) - strings.Count(pods, "=true")); used != want {
			t.Errorf("%s: %s leases, %s pods with addresses of ours: %s", n.Name, used, want, pods)
		}
	}
}

var pingLoss = regexp.MustCompile(`(\d+) packets transmitted, (\d+) packets received`)

var pingAnswer = regexp.MustCompile(`seq=(\d+) `)

// roll replaces all agents while a pod pings one of another node, if there is another.
func roll(t *testing.T, c *Cluster) {
	ctx := t.Context()
	clients, servers := podsOf(t, c, "app=client"), podsOf(t, c, "app=web")
	from := clients[0]
	to := servers[max(0, slices.IndexFunc(servers, func(p Pod) bool { return p.Node != from.Node }))]
	ping := c.ControlCommand(ctx, "kubectl", "exec", from.Name, "--", "ping", "-i", "0.02", "-W1", to.IPs[0])
	var out strings.Builder
	ping.Stdout, ping.Stderr = &out, &out
	must(t, ping.Start())
	began := time.Now()
	_, err := c.Kubectl(ctx, "-n", TwillNamespace, "rollout", "restart", "daemonset/twill-agent")
	must(t, err)
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	t.Logf("rolled in %s", time.Since(began).Round(100*time.Millisecond))
	_, err = c.Exec(ctx, from.Name, "killall", "-INT", "ping")
	must(t, err)
	_ = ping.Wait() // its summary says all
	found := pingLoss.FindStringSubmatch(out.String())
	if found == nil {
		t.Fatalf("no summary of ping: %s", out.String())
	}
	t.Logf("%s of %s packets arrived", found[2], found[1])
	answered := map[string]bool{}
	for _, m := range pingAnswer.FindAllStringSubmatch(out.String(), -1) {
		answered[m[1]] = true
	}
	sent, err := strconv.Atoi(found[1])
	must(t, err)
	if sent < 10 {
		t.Errorf("only %d packets were sent", sent)
	}
	for i := range sent - 1 { // the last one may have been under way when ping was ended
		if !answered[strconv.Itoa(i)] {
			t.Errorf("packet %d of %d did not come back", i, sent)
		}
	}
}

// uninstall deletes the release as an administrator would, after the pods.
func uninstall(t *testing.T, c *Cluster) {
	ctx := t.Context()
	_, err := c.Kubectl(ctx, "delete", "daemonset/web", "daemonset/client", "deployment/crowd", "service/web", "--wait")
	must(t, err)
	_, err = c.Kubectl(ctx, "-n", "kube-system", "delete", "deployment/coredns")
	must(t, err)
	_, err = c.Kubectl(ctx, "wait", "--for=delete", "pod", "-l", "app in (web,client,crowd)", "--timeout="+patiently(time.Minute))
	must(t, err)
	_, err = c.Kubectl(ctx, "-n", "kube-system", "wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "--timeout="+patiently(time.Minute))
	must(t, err)
	began := time.Now()
	_, err = c.Helm(ctx, "uninstall", "twill", "--namespace", TwillNamespace, "--wait", "--timeout", patiently(upTimeout))
	must(t, err)
	t.Logf("uninstalled in %s", time.Since(began).Round(100*time.Millisecond))
	for _, n := range c.Nodes {
		left, err := n.Left(ctx)
		must(t, err)
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
		if c.OVS == OVSHost { // what is not ours is still there
			if _, err := n.Exec(ctx, "ip", "addr", "show", "to", n.IP()); err != nil {
				t.Error(err)
			}
		}
	}
	// Kubernetes collects the pods of the hooks after Helm has deleted those.
	_, err = c.Kubectl(ctx, "-n", TwillNamespace, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=twill", "--timeout="+patiently(time.Minute))
	must(t, err)
	kinds := "all,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings"
	objects, err := c.Kubectl(ctx, "get", kinds, "-A", "-l", "app.kubernetes.io/name=twill", "-o", "name")
	must(t, err)
	if objects != "" {
		t.Errorf("objects are left: %s", objects)
	}
}
