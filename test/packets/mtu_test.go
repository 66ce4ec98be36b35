package packets

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// overhead is what the tunnel adds to an IP packet over IPv4, in bytes: outer IPv4 20, UDP 8, Geneve or
// VXLAN 8, inner Ethernet 14. headers are those of an echo request.
const overhead = 50

func headers(family string) int {
	if family == "IPv6" {
		return 48
	}
	return 28
}

func TestPacketsOfExactlyTheMTUPass(t *testing.T) {
	for _, underlay := range []int{1500, 9000} {
		l := labtest.Up(t, lab.Options{Nodes: 2, Config: lab.Config{UnderlayMTU: underlay}})
		pods := labtest.AddPods(t, l, "a@node-1", "b@node-1", "c@node-2")
		mtu := underlay - overhead
		for _, family := range families(l) {
			for _, to := range pods[1:] {
				at := labtest.Of(family, to.Addresses)
				if lost := pings(t, l, pods[0], at, "-M", "do", "-s", fmt.Sprint(mtu-headers(family))); lost != "" {
					t.Errorf("underlay %d, %s: a packet of %d bytes to pod %s: %s", underlay, family, mtu, to.Name, lost)
				}
				lost := pings(t, l, pods[0], at, "-M", "do", "-s", fmt.Sprint(mtu-headers(family)+1))
				if !strings.Contains(lost, fmt.Sprintf("mtu: %d", mtu)) && !strings.Contains(lost, fmt.Sprintf("mtu=%d", mtu)) {
					t.Errorf("underlay %d, %s: a packet of %d bytes to pod %s is not refused with the MTU %d: %q", underlay, family, mtu+1, to.Name, mtu, lost)
				}
			}
		}
	}
}

// A pod keeps the MTU that its interface was made with; what has become too big since is answered, not lost.
func TestAPodLearnsThatTheMTUBecameSmaller(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "a@node-1", "c@node-2")
	const smaller = 1400
	t.Setenv("TWILL_MTU", fmt.Sprint(smaller))
	for _, n := range l.Nodes() {
		if err := l.StopAgent(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
	}
	for _, family := range families(l) {
		at := labtest.Of(family, pods[1].Addresses)
		if lost := pings(t, l, pods[0], at, "-M", "do", "-s", fmt.Sprint(smaller-headers(family))); lost != "" {
			t.Errorf("%s: a packet of %d bytes: %s", family, smaller, lost)
		}
		lost := pings(t, l, pods[0], at, "-M", "do", "-s", fmt.Sprint(smaller-headers(family)+1))
		told := strings.Contains(lost, fmt.Sprintf("mtu = %d", smaller)) || strings.Contains(lost, fmt.Sprintf("mtu=%d", smaller))
		if !told {
			t.Errorf("%s: a packet of %d bytes: the pod was not told of MTU %d: %q", family, smaller+1, smaller, lost)
		}
		// And so a connection goes on.
		if _, err := talkTCP(podHost(pods[0]), podHost(pods[1]), at, 1<<20); err != nil {
			t.Errorf("%s: %v", family, err)
		}
	}
}

func TestTheMTUFollowsTheUnderlayWhileRunning(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 1})
	if got := statusOf(t, l, "node-1").MTU; got != 1500-overhead {
		t.Fatalf("MTU %d, want %d", got, 1500-overhead)
	}
	if l.Datapath == "netdev" {
		labtest.OnNode(t, l, "node-1", "ovs-vsctl", "set", "Interface", "br-phy", "mtu_request=1400")
	} else {
		labtest.OnNode(t, l, "node-1", "ip", "link", "set", "eth0", "mtu", "1400")
	}
	eventually(t, 10*time.Second, "the MTU follows", func() string {
		if got := statusOf(t, l, "node-1").MTU; got != 1400-overhead {
			return fmt.Sprintf("MTU %d, want %d", got, 1400-overhead)
		}
		return ""
	})
	if got := addPod(t, l, "fresh@node-1"); !strings.Contains(podExec(t, l, got, "ip", "link", "show", "eth0").Stdout, fmt.Sprintf("mtu %d", 1400-overhead)) {
		t.Error("a new pod has the old MTU")
	}
}
