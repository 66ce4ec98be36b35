package lab_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
)

func TestNodesReachEachOtherAndTheHostOutside(t *testing.T) {
	l := upWithoutAgent(t, 2)
	mustPing(t, l, "node-1", "198.51.100.2", "2001:db8:100::2", lab.Outside4().String(), lab.Outside6().String())
	mustPing(t, l, "node-2", "198.51.100.1", "2001:db8:100::1", lab.Outside4().String(), lab.Outside6().String())
}

func TestNodesHaveAddressesOfTheFamilyAskedForAndNoOthers(t *testing.T) {
	for family, c := range map[string]struct{ other, outside, absent string }{
		"ipv4": {"198.51.100.2", lab.Outside4().String(), "2001:db8:"},
		"ipv6": {"2001:db8:100::2", lab.Outside6().String(), "198.51.100."},
	} {
		l, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: newName(t), NoAgent: true, IPFamily: family}, Nodes: 2})
		if err != nil {
			t.Fatal(err)
		}
		mustPing(t, l, "node-1", c.other, c.outside)
		if got := mustNodeExec(t, l, "node-1", "ip", "addr"); strings.Contains(got, c.absent) {
			t.Errorf("%s: an address of the other family:\n%s", family, got)
		}
	}
}

func TestTheUnderlayCarriesPacketsOfItsMTUAndNoLarger(t *testing.T) {
	l, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: newName(t), NoAgent: true, UnderlayMTU: 1600}, Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	// 20 bytes of IPv4 and 8 of ICMP header
	mustNodeExec(t, l, "node-1", "ping", "-c1", "-W2", "-Mdo", "-s1572", "198.51.100.2")
	out, err := l.NodeExec(t.Context(), "node-1", "ping", "-c1", "-W2", "-Mdo", "-s1573", "198.51.100.2")
	if err != nil || out.Code == 0 || !strings.Contains(out.Stdout+out.Stderr, "mtu=1600") {
		t.Errorf("one byte too many: %v, %+v", err, out)
	}
}

func TestToolsInNodeExecSpeakToThatNode(t *testing.T) {
	l := upWithoutAgent(t, 2)
	for _, node := range []string{"node-1", "node-2"} {
		mustNodeExec(t, l, node, "ovs-vsctl", "set", "Open_vSwitch", ".", "external_ids:who="+node)
	}
	for _, node := range []string{"node-1", "node-2"} {
		if got := mustNodeExec(t, l, node, "ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:who"); got != node+"\n" {
			t.Errorf("ovs-vsctl on %s speaks to %s", node, got)
		}
		mustNodeExec(t, l, node, "ovs-appctl", "version")
		mustNodeExec(t, l, node, "ovs-ofctl", "dump-flows", "br-phy")
		env := mustNodeExec(t, l, node, "env")
		dir := filepath.Join(lab.Dir(l.Name), "nodes", node)
		for _, want := range []string{"OVS_RUNDIR=" + dir + "/ovs", "TWILL_ADMIN_SOCKET=" + dir + "/run/agent.sock", "CNI_PATH=" + dir + "/cni/bin", "PATH=" + l.BinDir + ":"} {
			if !strings.Contains("\n"+env, "\n"+want) {
				t.Errorf("environment on %s lacks %s", node, want)
			}
		}
	}
}

func TestExecGivesOutputAndExitCodeOfTheCommand(t *testing.T) {
	l := upWithoutAgent(t, 1)
	out, err := l.NodeExec(t.Context(), "node-1", "sh", "-c", "echo out; echo err >&2; exit 7")
	if want := (lab.Output{Stdout: "out\n", Stderr: "err\n", Code: 7}); err != nil || out != want {
		t.Errorf("got %+v, %v, want %+v", out, err, want)
	}
	if out, err := l.NodeExec(t.Context(), "node-1", "sh", "-c", "kill -TERM $$"); err != nil || out.Code != 128+15 {
		t.Errorf("ended by SIGTERM: %+v, %v, want exit code 143", out, err)
	}
	if _, err := l.NodeExec(t.Context(), "node-1", "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found in") {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := l.NodeExec(t.Context(), "node-2", "true"); err == nil || !strings.Contains(err.Error(), "has no node \"node-2\"") {
		t.Errorf("a node that is not there: %v", err)
	}
}

func TestAKilledSwitchComesBackWithTheNodesAddresses(t *testing.T) {
	l := upWithoutAgent(t, 2)
	if err := l.KillOVS(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Nodes[0]; n.VSwitchdPid != 0 || n.OVSDBPid == 0 {
		t.Errorf("after kill: ovsdb-server %d, ovs-vswitchd %d, want only the former", n.OVSDBPid, n.VSwitchdPid)
	}
	if err := l.StartOVS(t.Context(), "node-1", false); err != nil {
		t.Fatal(err)
	}
	mustPing(t, l, "node-1", "198.51.100.2", "2001:db8:100::2", lab.Outside4().String())
}

func TestANodeGoesAndComesBackUnderItsOldName(t *testing.T) {
	l := upWithoutAgent(t, 3)
	if err := l.RemoveNode(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	if got := nodeNames(l); !slices.Equal(got, []string{"node-1", "node-3"}) {
		t.Errorf("after rm: %v", got)
	}
	manifest := filepath.Join(lab.Dir(l.Name), "manifests", "node_node-2.yaml")
	if _, err := os.Stat(manifest); !os.IsNotExist(err) {
		t.Errorf("the Node object is still there: %v", err)
	}
	n, err := l.AddNode(t.Context(), "")
	if err != nil || n.Name != "node-2" {
		t.Fatalf("add: %v, %v, want node-2", n, err)
	}
	mustPing(t, l, "node-1", "198.51.100.2", "2001:db8:100::2")
	if _, err := os.Stat(manifest); err != nil {
		t.Errorf("the Node object is not back: %v", err)
	}
	if _, err := l.AddNode(t.Context(), "node-3"); err == nil || !strings.Contains(err.Error(), "has a node-3 already") {
		t.Errorf("adding a node that exists: %v", err)
	}
	if _, err := l.AddNode(t.Context(), "worker-1"); err == nil || !strings.Contains(err.Error(), "they are called node-1 to node-200") {
		t.Errorf("adding a node of another name: %v", err)
	}
}

func TestAPodOnANodeWithoutCNIConfigurationFailsAndLeavesNothing(t *testing.T) {
	l := upWithoutAgent(t, 1)
	before := traces(t, l.Name)
	_, err := l.AddPod(t.Context(), lab.Pod{Name: "a"})
	if err == nil || !strings.Contains(err.Error(), "there is no CNI configuration in") {
		t.Errorf("add: %v", err)
	}
	mustReturnTo(t, before, l.Name)
	if pods, err := l.Pods(); err != nil || len(pods) != 0 {
		t.Errorf("pods: %v, %v", pods, err)
	}
}
