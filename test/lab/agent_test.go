package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/ovsd"
)

// up is a lab of 2 nodes with agents.
func up(t *testing.T) *lab.Lab {
	t.Helper()
	if _, err := os.Stat(filepath.Join("..", "..", "bin", "twill")); err != nil {
		ovsd.Missing(t, "bin/twill is not built: run `make build`")
	}
	l, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: newName(t)}, Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAnAgentIsReadyAfterUpNotAfterItsDeathAndAgainAfterStart(t *testing.T) {
	l := up(t)
	ready := func() string {
		s, err := l.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var nodes []string
		for _, n := range s.Nodes {
			if n.Ready && n.AgentPid != 0 {
				nodes = append(nodes, n.Name)
			}
		}
		return strings.Join(nodes, " ")
	}
	if got := ready(); got != "node-1 node-2" {
		t.Errorf("after up these are ready: %q", got)
	}
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if got := ready(); got != "node-2" {
		t.Errorf("after kill these are ready: %q", got)
	}
	if err := l.KillAgent(t.Context(), "node-1"); err == nil || !strings.Contains(err.Error(), "start it with `twill-lab agent start node-1`") {
		t.Errorf("second kill: %v", err)
	}
	if err := l.StopAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	if err := l.StopAgent(t.Context(), "node-2"); err != nil {
		t.Errorf("second stop: %v", err)
	}
	for _, n := range []string{"node-1", "node-2", "node-2"} {
		if err := l.StartAgent(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if got := ready(); got != "node-1 node-2" {
		t.Errorf("after start these are ready: %q", got)
	}
}

func TestSetTunnelChangesTheEncapsulationOfEveryNode(t *testing.T) {
	l := up(t)
	if err := l.SetTunnel(t.Context(), "vxlan"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"node-1", "node-2"} {
		for tunnel, want := range map[string]int{"vxlan": 1, "geneve": 0} {
			out := mustNodeExec(t, l, n, "ovs-vsctl", "--bare", "--columns=name", "find", "interface", "type="+tunnel)
			if got := len(strings.Fields(out)); got != want {
				t.Errorf("%s has %d %s ports, want %d", n, got, tunnel, want)
			}
		}
	}
	if again, err := lab.Open(l.Name); err != nil || again.Tunnel != "vxlan" {
		t.Errorf("the lab remembers %q, %v", again.Tunnel, err)
	}
	if err := l.SetTunnel(t.Context(), "gre"); err == nil || !strings.Contains(err.Error(), "must be one of geneve, vxlan") {
		t.Errorf("a tunnel type that is none: %v", err)
	}
}

func TestPodsComeTalkAndGoWithoutATrace(t *testing.T) {
	l := up(t)
	before := traces(t, l.Name)
	pods, err := l.AddPods(t.Context(), []lab.Pod{
		{Name: "a", Node: "node-1"},
		{Name: "a", Namespace: "shop", Node: "node-2", Labels: map[string]string{"app": "db"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range pods[1].Addresses {
		if out, err := l.Exec(t.Context(), "a", "ping", "-c3", "-i0.2", "-W2", to.String()); err != nil || out.Code != 0 {
			t.Errorf("ping %s: %v, %s%s", to, err, out.Stdout, out.Stderr)
		}
	}
	manifest, err := os.ReadFile(filepath.Join(lab.Dir(l.Name), "manifests", "pod_shop_a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"app: db", "nodeName: node-2", "phase: Running", "podIP: " + pods[1].Addresses[0].String(), "uid: " + pods[1].UID} {
		if !strings.Contains(string(manifest), want) {
			t.Errorf("the Pod object lacks %q:\n%s", want, manifest)
		}
	}
	if _, err := l.AddPod(t.Context(), lab.Pod{Name: "a"}); err == nil || !strings.Contains(err.Error(), "pod default/a exists already") {
		t.Errorf("adding a pod that exists: %v", err)
	}
	for _, ref := range []string{"a", "shop/a"} {
		if err := l.RemovePod(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	mustReturnTo(t, before, l.Name)
	for _, dir := range []string{"pods", "nodes/node-1/cni/cache/results"} {
		if left, _ := os.ReadDir(filepath.Join(lab.Dir(l.Name), dir)); len(left) != 0 {
			t.Errorf("%s still has %v", dir, left)
		}
	}
	if _, err := l.Exec(t.Context(), "a", "true"); err == nil || !strings.Contains(err.Error(), "has no pod default/a") {
		t.Errorf("exec in a pod that is gone: %v", err)
	}
}
