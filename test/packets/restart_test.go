package packets

import (
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// stream sends a datagram each millisecond from one pod to another, which sends it back.
type stream struct {
	sent, back atomic.Int64
	stop       chan struct{}
	done       chan struct{}
}

// startStream returns once the first answer is back.
func startStream(t *testing.T, from, to lab.Pod, family string) *stream {
	t.Helper()
	var c, s *net.UDPConn
	at := netip.AddrPortFrom(labtest.Of(family, to.Addresses), 7007)
	if err := lab.Inside(to.NetNS, func() (err error) {
		s, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := lab.Inside(from.NetNS, func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	x := &stream{stop: make(chan struct{}), done: make(chan struct{})}
	t.Cleanup(func() { c.Close(); s.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			n, peer, err := s.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			s.WriteToUDPAddrPort(buf[:n], peer)
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			x.back.Add(1)
		}
	}()
	go func() {
		defer close(x.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-x.stop:
				return
			case <-tick.C:
				if _, err := c.Write([]byte("0123456789abcdef")); err == nil {
					x.sent.Add(1)
				}
			}
		}
	}()
	eventually(t, patience(), "the stream flows", func() string {
		if x.back.Load() > 0 {
			return ""
		}
		return "no datagram came back"
	})
	return x
}

// end stops sending and returns how many datagrams were sent and how many of them never came back.
func (x *stream) end(t *testing.T) (sent, lost int64) {
	t.Helper()
	close(x.stop)
	<-x.done
	deadline := time.Now().Add(time.Second)
	for x.back.Load() < x.sent.Load() && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond) // the last ones are on their way; what is lost has no event
	}
	return x.sent.Load(), x.sent.Load() - x.back.Load()
}

var appliedLine = regexp.MustCompile(`msg="flows applied".*`)

func TestAnAgentThatIsKilledChangesNothingAndLosesNothing(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-2")
	streams, known := map[string]*stream{}, int64(strays(t, l))
	for _, family := range families(l) {
		streams[family] = startStream(t, pods[0], pods[1], family)
	}
	for _, name := range []string{"node-1", "node-2"} {
		before := labtest.OnNode(t, l, name, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill")
		since := len(logOf(t, l, name, 0))
		if err := l.KillAgent(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		first := appliedLine.FindString(logOf(t, l, name, since))
		if !strings.Contains(first, "added=0") || !strings.Contains(first, "deleted=0") {
			t.Errorf("%s: the first pass of the new agent changed the bridge: %q", name, first)
		}
		if after := labtest.OnNode(t, l, name, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill"); difference(before, after) != "" {
			t.Errorf("%s: flows changed:\n%s", name, difference(before, after))
		}
	}
	for family, s := range streams {
		sent, lost := s.end(t)
		// What Open vSwitch itself took out of its tunnel is not the agent's loss, see strays.
		stray := int64(strays(t, l)) - known
		if lost > stray || sent < 100 {
			t.Errorf("%s: %d of %d datagrams lost, of which Open vSwitch led %d to the host", family, lost, sent, stray)
		}
		known += min(lost, stray)
	}
	if s := statusOf(t, l, "node-1"); !s.Ready || len(s.Pods) != 1 || s.Addresses.Ranges[0].Used != 1 {
		t.Errorf("after the restart: ready %t, pods %v, addresses %+v", s.Ready, s.Pods, s.Addresses)
	}
}

func TestAfterOpenVSwitchRestartsEverythingIsRestored(t *testing.T) {
	for _, restoreWait := range []bool{false, true} {
		l := labtest.Up(t, lab.Options{Nodes: 2})
		pods := labtest.AddPods(t, l, "a@node-1", "b@node-2")
		mustPing(t, l, pods[0], pods[1])
		flows := statusOf(t, l, "node-1").Flows

		if err := l.KillOVS(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, "the agent says that it is not ready", func() string {
			if s := statusOf(t, l, "node-1"); s.Ready {
				return "it still says it is"
			}
			return ""
		})
		if err := l.StartOVS(t.Context(), "node-1", restoreWait); err != nil {
			t.Fatal(err)
		}
		took := eventually(t, 10*time.Second, "packets pass again", func() string {
			return pings(t, l, pods[0], labtest.Of("IPv4", pods[1].Addresses))
		})
		t.Logf("restore-wait %t: packets pass %s after Open vSwitch came back", restoreWait, took.Round(time.Millisecond))
		eventually(t, 5*time.Second, "the agent is ready again", func() string {
			s := statusOf(t, l, "node-1")
			if s.Ready && s.Flows == flows {
				return ""
			}
			return strings.Join(s.Problems, "; ")
		})
		mustPing(t, l, pods[1], pods[0])
		fresh := addPod(t, l, "fresh@node-1")
		mustPing(t, l, fresh, pods[1])
		if got := labtest.OnNode(t, l, "node-1", "ovs-vsctl", "get", "Open_vSwitch", ".", "other_config"); strings.Contains(got, "flow-restore-wait") {
			t.Errorf("flow-restore-wait is still set: %s", got)
		}
	}
}

func TestTheTunnelTypeChangesAtRestart(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-2")
	for _, tunnel := range []string{"vxlan", "geneve"} {
		if err := l.SetTunnel(t.Context(), tunnel); err != nil {
			t.Fatal(err)
		}
		mustPing(t, l, pods[0], pods[1])
		if got := strings.TrimSpace(labtest.OnNode(t, l, "node-1", "ovs-vsctl", "get", "Interface", "twill-tun", "type")); got != tunnel {
			t.Errorf("the tunnel port is of type %s, want %s", got, tunnel)
		}
	}
}
