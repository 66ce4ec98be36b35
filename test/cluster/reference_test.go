//go:build e2e

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// crowdSize is how many pods come and go at once.
const crowdSize = 100

// crowdTimeout bounds how long that takes: two busy cores start a pod in several seconds.
const crowdTimeout = 10 * time.Minute

// TestPodsByTheHundred: a hundred pods come and go, with the CNI project's own plugin bridge and then, in the same
// cluster, with Twill, which must neither fail nor leave anything; how long the pods took with each.
func TestPodsByTheHundred(t *testing.T) {
	c := up(t, Options{Name: "pods", Nodes: 2, DualStack: true})
	ctx, root := t.Context(), checkout(t)
	c.useReference(t)
	must(t, c.Ready(ctx, upTimeout))
	// As soon as nobody taints the nodes any more. Without Twill nodes do not reach each other's pods; each its own.
	startWeb(t, c)
	measured := c.measureStarts(t)
	scale(t, c, crowdSize)
	measured("bridge")
	scale(t, c, 0)
	_, err := c.Kubectl(ctx, "delete", "-f", filepath.Join(root, "test/cluster/testdata/web.yaml"), "--wait")
	must(t, err)
	_, err = c.Kubectl(ctx, "wait", "--for=delete", "pod", "--all", "--timeout=2m")
	must(t, err)
	c.removeReference(t)

	must(t, c.Install(ctx, root))
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	must(t, c.Ready(ctx, upTimeout))
	startWeb(t, c)
	whole(t, c)
	must(t, c.forgetEvents(ctx))
	measured = c.measureStarts(t)
	crowd(t, c, crowdSize)
	measured("Twill")
}

// forgetEvents deletes those of the namespace default in one request; kubectl has one for each, and takes minutes.
func (c *Cluster) forgetEvents(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "delete", "--raw", "/api/v1/namespaces/default/events")
	return err
}

// startWeb starts the pods of web.yaml, which also warms up what starts pods.
func startWeb(t *testing.T, c *Cluster) {
	t.Helper()
	ctx := t.Context()
	must(t, c.Apply(ctx, checkout(t), "web.yaml"))
	must(t, c.RolledOut(ctx, "default", "daemonset/web", upTimeout))
	must(t, c.RolledOut(ctx, "default", "daemonset/client", upTimeout))
}

// scale sets how many pods the crowd has, and waits for it.
func scale(t *testing.T, c *Cluster, size int) {
	t.Helper()
	ctx := t.Context()
	began := time.Now()
	_, err := c.Kubectl(ctx, "scale", "deployment/crowd", fmt.Sprint("--replicas=", size))
	must(t, err)
	must(t, c.RolledOut(ctx, "default", "deployment/crowd", crowdTimeout))
	if size == 0 {
		_, err = c.Kubectl(ctx, "wait", "--for=delete", "pod", "-l", "app=crowd", "--timeout=10m")
		must(t, err)
	}
	t.Logf("to %d pods: %s", size, time.Since(began).Round(100*time.Millisecond))
}

// referenceVersion is the release of the CNI project's own plugins.
const referenceVersion = "v1.9.1"

// referenceConf is the first file in the directory of configurations as long as it is there.
const referenceConf = "/etc/cni/net.d/00-reference.conflist"

// useReference has the nodes' pods attached by the plugins bridge and host-local, without a network between nodes.
func (c *Cluster) useReference(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if !exists(c.Programs.path("bridge")) {
		const module = "github.com/containernetworking/plugins/plugins/"
		// By version, as their dependencies are nobody's but theirs.
		cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", module+"main/bridge@"+referenceVersion, module+"ipam/host-local@"+referenceVersion)
		cmd.Env = append(os.Environ(), "GOBIN="+c.Programs.Dir, "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, out)
		}
	}
	for _, n := range c.Nodes {
		var cidrs []string
		must(t, Eventually(ctx, upTimeout, func(ctx context.Context) error {
			out, err := c.Kubectl(ctx, "get", "node", n.Name, "-o", "jsonpath={.spec.podCIDRs[*]}")
			if cidrs = strings.Fields(out); err == nil && len(cidrs) != len(c.ClusterCIDRs()) {
				err = fmt.Errorf("%s has the podCIDRs %v", n.Name, cidrs)
			}
			return err
		}))
		var ranges []any
		for _, cidr := range cidrs {
			ranges = append(ranges, []any{map[string]any{"subnet": cidr}})
		}
		list, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "reference", "plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
			"ipam": map[string]any{"type": "host-local", "dataDir": "/run/reference", "ranges": ranges, "routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}}},
		}}})
		must(t, err)
		for _, plugin := range []string{"bridge", "host-local"} {
			_, err := n.Exec(ctx, "cp", c.Programs.path(plugin), "/opt/cni/bin/"+plugin)
			must(t, err)
		}
		cmd := n.Command(ctx, "tee", referenceConf)
		cmd.Stdin = strings.NewReader(string(list))
		must(t, cmd.Run())
	}
}

// removeReference takes it away again.
func (c *Cluster) removeReference(t *testing.T) {
	t.Helper()
	for _, n := range c.Nodes {
		_, err := n.Exec(t.Context(), "rm", referenceConf)
		must(t, err)
		must(t, ip(t.Context(), n.NetNS(), "link del cni0"))
	}
}

var (
	// startedPod is a line of the kubelet's log. The API has the time of a pod's creation to the second, so half a second
	// of what it says is not true on average.
	startedPod = regexp.MustCompile(`"Observed pod startup duration" pod="default/crowd-.* podStartE2EDuration="([^"]+)"`)
	// sandbox is a line of containerd's log, when a sandbox is begun, and when it has its network and runs.
	sandbox = regexp.MustCompile(`time="([^"]+)" .*msg="RunPodSandbox for &PodSandboxMetadata{Name:(crowd-[^,]+),.*,}( returns sandbox id)?`)
)

// measureStarts begins to measure how long pods of the crowd take to start, and to get a sandbox with its network; what
// it returns tells that.
func (c *Cluster) measureStarts(t *testing.T) func(who string) {
	t.Helper()
	read := func(n *Node, name string) string {
		text, err := os.ReadFile(c.path("log", n.Name+"-"+name+".log"))
		must(t, err)
		return string(text)
	}
	before := map[string]int{}
	for _, n := range c.Nodes {
		for _, name := range []string{"kubelet", "containerd"} {
			before[n.Name+name] = len(read(n, name))
		}
	}
	measure := func() (starts, sandboxes []time.Duration) {
		for _, n := range c.Nodes {
			for _, m := range startedPod.FindAllStringSubmatch(read(n, "kubelet")[before[n.Name+"kubelet"]:], -1) {
				took, err := time.ParseDuration(m[1])
				must(t, err)
				starts = append(starts, took)
			}
			begun := map[string]time.Time{}
			for _, m := range sandbox.FindAllStringSubmatch(read(n, "containerd")[before[n.Name+"containerd"]:], -1) {
				at, err := time.Parse(time.RFC3339Nano, m[1])
				must(t, err)
				if m[3] == "" {
					begun[m[2]] = at
				} else {
					sandboxes = append(sandboxes, at.Sub(begun[m[2]]))
				}
			}
		}
		return starts, sandboxes
	}
	return func(who string) {
		t.Helper()
		var starts, sandboxes []time.Duration
		// A kubelet logs a pod's start after it has reported it, and the Deployment is complete; of one in some fifty it
		// logs none, so the figures are of those that it has.
		must(t, Eventually(t.Context(), time.Minute, func(context.Context) error {
			if starts, sandboxes = measure(); len(starts) < crowdSize*95/100 || len(sandboxes) != crowdSize {
				return fmt.Errorf("%s: %d starts of pods and %d of sandboxes measured, want %d", who, len(starts), len(sandboxes), crowdSize)
			}
			return nil
		}))
		for what, all := range map[string][]time.Duration{"pod start": starts, "sandbox": sandboxes} {
			slices.Sort(all)
			t.Logf("%s: %s, %d measured: p50 %s, p99 %s", who, what, len(all), all[len(all)/2].Round(10*time.Millisecond), all[len(all)*99/100].Round(10*time.Millisecond))
		}
	}
}
