// Package packets sends real packets through real agents: each test builds a lab (test/lab), breaks or
// asks something, and says in words a network engineer can read what has to come of it.
//
// A test opens its sockets inside the namespaces of the lab, on a thread that has entered it, so one
// process plays pods, nodes and the host outside. It needs root and the programs in bin/ (`make build`).
// What is waited for is a condition with a deadline, never a time.
package packets

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/ovsd"
)

// newLab prepares a lab that is taken down after the test. Its agents take further settings from the
// environment: t.Setenv("TWILL_MTU", …) before.
func newLab(t *testing.T, o lab.Options) lab.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		ovsd.Missing(t, "network namespaces need root")
	}
	for _, tool := range []string{"ip", "ethtool", "ping", "nft", "conntrack", "ovs-vswitchd"} {
		ovsd.Need(t, tool)
	}
	if os.Getenv("TWILL_LAB_DIR") == "" {
		dir, err := os.MkdirTemp("", "tp")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		t.Setenv("TWILL_LAB_DIR", dir)
	}
	o.Datapath = os.Getenv("TWILL_TEST_DATAPATH") // "" is the lab's default
	o.Name = "p" + strings.ToLower(rand.Text()[:6])
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			showLogs(t, o.Name)
		}
		if err := lab.Down(ctx, o.Name); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	return o
}

// showLogs prints the end of each agent's log: the lab goes with the test.
func showLogs(t *testing.T, name string) {
	logs, _ := filepath.Glob(filepath.Join(lab.Dir(name), "nodes", "*", "agent.log"))
	for _, file := range logs {
		data, _ := os.ReadFile(file)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("%s:\n%s", file, strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

// up builds a lab with agents.
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), newLab(t, o))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// addPods attaches pods "name@node-1" at once, in namespace default.
func addPods(t *testing.T, l *lab.Lab, specs ...string) []lab.Pod {
	t.Helper()
	pods := make([]lab.Pod, len(specs))
	for i, spec := range specs {
		name, node, _ := strings.Cut(spec, "@")
		pods[i] = lab.Pod{Namespace: "default", Name: name, Node: node}
	}
	pods, err := l.AddPods(t.Context(), pods)
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

func addPod(t *testing.T, l *lab.Lab, spec string) lab.Pod {
	t.Helper()
	return addPods(t, l, spec)[0]
}

func removePod(t *testing.T, l *lab.Lab, p lab.Pod) {
	t.Helper()
	if err := l.RemovePod(t.Context(), p.String()); err != nil {
		t.Fatal(err)
	}
}

// of picks the address of a family.
func of(family string, addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if a.Is4() == (family == "IPv4") {
			return a
		}
	}
	return netip.Addr{}
}

// families are those that a lab's pods have.
func families(l *lab.Lab) []string {
	switch l.IPFamily {
	case "ipv4":
		return []string{"IPv4"}
	case "ipv6":
		return []string{"IPv6"}
	}
	return []string{"IPv4", "IPv6"}
}

func node(t *testing.T, l *lab.Lab, name string) *lab.Node {
	t.Helper()
	n, err := l.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func nodeNS(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	return "/run/netns/" + node(t, l, name).NetNS()
}

func outsideNS(l *lab.Lab) string { return "/run/netns/twl-" + l.Name + "-outside" }

// inside calls f on a thread that has entered a network namespace; sockets that f opens stay there.
func inside(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread dies with this goroutine
		done <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

func podExec(t *testing.T, l *lab.Lab, p lab.Pod, args ...string) lab.Output {
	t.Helper()
	out, err := l.Exec(t.Context(), p.String(), args...)
	if err != nil {
		t.Fatalf("in pod %s: %s: %v", p, strings.Join(args, " "), err)
	}
	return out
}

// onNode runs a command on a node and returns what it printed; a failure ends the test.
func onNode(t *testing.T, l *lab.Lab, node string, args ...string) string {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, args...)
	if err != nil || out.Code != 0 {
		t.Fatalf("on %s: %s: %v, exit code %d\n%s%s", node, strings.Join(args, " "), err, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// pings says what one echo request with one second to live brought: "" or ping's own words.
func pings(t *testing.T, l *lab.Lab, from lab.Pod, to netip.Addr, flags ...string) string {
	t.Helper()
	out := podExec(t, l, from, append(append([]string{"ping", "-n", "-c1", fmt.Sprintf("-W%d", lab.Slow())}, flags...), to.String())...)
	if out.Code == 0 {
		return ""
	}
	return fmt.Sprintf("ping from %s to %s: exit code %d\n%s%s", from, to, out.Code, out.Stdout, out.Stderr)
}

// mustPing wants one packet to arrive and be answered, in every family that both have.
func mustPing(t *testing.T, l *lab.Lab, from, to lab.Pod) {
	t.Helper()
	for _, family := range families(l) {
		if lost := pings(t, l, from, of(family, to.Addresses)); lost != "" {
			t.Error(lost)
		}
	}
}

// statusOf asks a node's agent; a status that is not ready is no error.
func statusOf(t *testing.T, l *lab.Lab, node string) agent.Status {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, "twill", "status", "-o", "json")
	var s agent.Status
	if err == nil {
		err = json.Unmarshal([]byte(out.Stdout), &s)
	}
	if err != nil {
		t.Fatalf("twill status on %s: %v\n%s%s", node, err, out.Stdout, out.Stderr)
	}
	return s
}

// drops counts dropped packets of a node by reason.
func drops(t *testing.T, l *lab.Lab, node string) map[string]uint64 {
	t.Helper()
	var list []agent.LiveFlow
	if err := json.Unmarshal([]byte(onNode(t, l, node, "twill", "flows", "--drops", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, f := range list {
		counts[string(f.Drop)] += f.Packets
	}
	return counts
}

// metric adds up the samples of a metric whose labels contain some text.
func metric(t *testing.T, l *lab.Lab, node, name, labels string) float64 {
	t.Helper()
	var text string
	if err := inside(nodeNS(t, l, node), func() (err error) {
		text, err = get(t.Context(), "http://127.0.0.1:9455/metrics")
		return err
	}); err != nil {
		t.Fatalf("metrics of %s: %v", node, err)
	}
	sum := 0.0
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == '{' || rest[0] == ' ') && strings.Contains(rest, labels) {
			var v float64
			fields := strings.Fields(rest)
			if _, err := fmt.Sscan(fields[len(fields)-1], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// eventually waits until a condition holds; it says what is wrong, or "". It returns how long that took.
func eventually(t *testing.T, within time.Duration, what string, wrong func() string) time.Duration {
	t.Helper()
	within *= lab.Slow()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := wrong()
		if last == "" {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %s", what, within, last)
		}
		<-tick.C
	}
}

// logOf is what a node's agent has logged since an offset; 0 is the start.
func logOf(t *testing.T, l *lab.Lab, name string, since int) string {
	t.Helper()
	data, err := os.ReadFile(node(t, l, name).LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(data[min(since, len(data)):])
}
