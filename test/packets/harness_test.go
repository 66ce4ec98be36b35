// Package packets sends real packets through real agents: each test builds a lab (test/lab), breaks or
// asks something, and says in words a network engineer can read what has to come of it.
//
// A test opens its sockets inside the namespaces of the lab, on a thread that has entered it, so one
// process plays pods, nodes and the host outside. It needs root and the programs in bin/ (`make build`).
// What is waited for is a condition with a deadline, never a time.
package packets

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

func addPod(t *testing.T, l *lab.Lab, spec string) lab.Pod {
	t.Helper()
	return labtest.AddPods(t, l, spec)[0]
}

func removePod(t *testing.T, l *lab.Lab, p lab.Pod) {
	t.Helper()
	if err := l.RemovePod(t.Context(), p.String()); err != nil {
		t.Fatal(err)
	}
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

func podExec(t *testing.T, l *lab.Lab, p lab.Pod, args ...string) lab.Output {
	t.Helper()
	out, err := l.Exec(t.Context(), p.String(), args...)
	if err != nil {
		t.Fatalf("in pod %s: %s: %v", p, strings.Join(args, " "), err)
	}
	return out
}

// pings says what one echo request with one second to live brought: "" or ping's own words. A packet that Open vSwitch
// itself took out of its tunnel is sent once more, see strays.
func pings(t *testing.T, l *lab.Lab, from lab.Pod, to netip.Addr, flags ...string) string {
	t.Helper()
	before := strays(t, l)
	lost := pingsOnce(t, l, from, to, flags...)
	if lost == "" {
		return ""
	}
	if now := strays(t, l); now > before {
		t.Logf("%s\n%d packets of the tunnel went to the host in place of the bridge; once more", lost, now-before)
		lost = pingsOnce(t, l, from, to, flags...)
	}
	return lost
}

func pingsOnce(t *testing.T, l *lab.Lab, from lab.Pod, to netip.Addr, flags ...string) string {
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
		if lost := pings(t, l, from, labtest.Of(family, to.Addresses)); lost != "" {
			t.Error(lost)
		}
	}
}

// strays counts the UDP packets at the nodes' hosts for ports at which nobody listens. A packet of the tunnel is among them
// when userspace Open vSwitch 3.1 does not know its own tunnel for a moment: it forgets all routes and the addresses of
// tunnels when a link of the host changes, and a pod is a link, before it reads them anew; a revalidator that looks
// meanwhile leads the tunnel's packets to the host, until it looks again (docs/operations.md). Tunnels of the kernel's
// datapath are not Open vSwitch's to know, and there nothing is excused.
func strays(t *testing.T, l *lab.Lab) (n int) {
	t.Helper()
	if l.Datapath != "netdev" {
		return 0
	}
	for _, node := range l.Nodes() {
		var text []byte
		if err := lab.Inside(labtest.NodeNS(t, l, node.Name), func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/snmp")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		// Udp: InDatagrams NoPorts …, names in the first line and values in the second.
		lines := slices.Collect(strings.Lines(string(text)))
		i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Udp: ") })
		if i < 0 || i+1 >= len(lines) {
			t.Fatalf("no counters of UDP in\n%s", text)
		}
		at := slices.Index(strings.Fields(lines[i]), "NoPorts")
		values := strings.Fields(lines[i+1])
		if at < 0 || at >= len(values) {
			t.Fatalf("no NoPorts in\n%s", text)
		}
		v, err := strconv.Atoi(values[at])
		if err != nil {
			t.Fatal(err)
		}
		n += v
	}
	return n
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
	if err := json.Unmarshal([]byte(labtest.OnNode(t, l, node, "twill", "flows", "--drops", "-o", "json")), &list); err != nil {
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
	if err := lab.Inside(labtest.NodeNS(t, l, node), func() (err error) {
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
	return labtest.Eventually(t, within, what, func() error {
		if last := wrong(); last != "" {
			return errors.New(last)
		}
		return nil
	})
}

// logOf is what a node's agent has logged since an offset; 0 is the start.
func logOf(t *testing.T, l *lab.Lab, name string, since int) string {
	t.Helper()
	data, err := os.ReadFile(labtest.Node(t, l, name).LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(data[min(since, len(data)):])
}
