package flows_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

// transports are the packets that one pair of endpoints exchanges, whatever their ports.
func transports(v6 bool) []string {
	if v6 {
		return []string{
			"tcp6,tcp_src=40000,tcp_dst=80", "tcp6,tcp_src=50001,tcp_dst=443", "udp6,udp_src=40000,udp_dst=53", "udp6,udp_src=40001,udp_dst=6081",
			"sctp6,sctp_src=40000,sctp_dst=7", "icmp6,icmpv6_type=128,icmpv6_code=0", "icmp6,icmpv6_type=1,icmpv6_code=4",
		}
	}
	return []string{
		"tcp,tcp_src=40000,tcp_dst=80", "tcp,tcp_src=50001,tcp_dst=443", "udp,udp_src=40000,udp_dst=53", "udp,udp_src=40001,udp_dst=6081",
		"sctp,sctp_src=40000,sctp_dst=7", "icmp,icmp_type=8,icmp_code=0", "icmp,icmp_type=3,icmp_code=4",
	}
}

// TestMegaflowsStayCoarse counts the megaflows of traffic between two endpoints. Where the TTL is
// decremented OVS itself makes one for each protocol (see outputFlows); everything else needs one in
// all. No megaflow matches a port or an ICMP type, and nothing is sent through conntrack.
func TestMegaflowsStayCoarse(t *testing.T) {
	b := startBridge(t, 1, 2, 3, 9)
	s := readScenario(t, "testdata/three-dual.txtar")
	d := desired(t, s.world)
	b.become(d)
	tr := tracer{b, d, flows.NamesOf(s.world)}
	const host, peer = "in_port=32769,dl_src=0e:77:00:00:00:02", "in_port=32768,tun_id=7,tun_src=198.51.100.2,tun_dst=198.51.100.1," + fromSky
	for _, c := range []struct {
		name, in               string
		src4, dst4, src6, dst6 string
		most                   int
	}{
		{"pod to pod here", webPort, "198.18.1.2", "198.18.1.3", "2001:db8:1:1::2", "2001:db8:1:1::3", 4},
		{"pod to pod on a peer", webPort, "198.18.1.2", "198.18.2.9", "2001:db8:1:1::2", "2001:db8:1:2::9", 4},
		{"pod on a peer to pod here", peer, "198.18.2.9", "198.18.1.2", "2001:db8:1:2::9", "2001:db8:1:1::2", 4},
		{"host to pod here", host, "198.51.100.1", "198.18.1.2", "2001:db8:f::1", "2001:db8:1:1::2", 1},
		{"host to pod on a peer", host, "198.51.100.1", "198.18.2.9", "2001:db8:f::1", "2001:db8:1:2::9", 1},
		{"pod to outside", webPort, "198.18.1.2", "203.0.113.5", "2001:db8:1:1::2", "2001:db8:ffff::5", 1},
	} {
		for _, v6 := range []bool{false, true} {
			format := "%s,dl_dst=0e:77:00:00:00:01,%s,nw_ttl=64,nw_src=" + c.src4 + ",nw_dst=" + c.dst4
			if v6 {
				format = "%s,dl_dst=0e:77:00:00:00:01,%s,nw_ttl=64,ipv6_src=" + c.src6 + ",ipv6_dst=" + c.dst6
			}
			megaflows := map[string]bool{}
			for _, l4 := range transports(v6) {
				text, got := tr.trace(fmt.Sprintf(format, c.in, l4))
				megaflows[got.Megaflow] = true
				if strings.Contains(text, "ct(") || strings.Contains(got.Megaflow, "ct_") {
					t.Errorf("%s, %s: conntrack\n%s", c.name, l4, text)
				}
				for _, f := range flows.ParseMatch(got.Megaflow) {
					if strings.HasPrefix(f.Name, "tp_") || strings.HasPrefix(f.Name, "icmp_") || strings.HasPrefix(f.Name, "icmpv6_") || f.Name == "nw_proto" {
						t.Errorf("%s, %s: the megaflow matches %s: %s", c.name, l4, f, got.Megaflow)
					}
				}
			}
			if len(megaflows) > c.most {
				t.Errorf("%s: %d megaflows, want at most %d:\n%s", c.name, len(megaflows), c.most,
					strings.Join(slices.Sorted(maps.Keys(megaflows)), "\n"))
			}
		}
	}
}

// TestOVSItselfMatchesTheProtocolOfWhatItRewrites is the evidence for the comment at outputFlows.
func TestOVSItselfMatchesTheProtocolOfWhatItRewrites(t *testing.T) {
	b := startBridge(t, 1, 2)
	if err := b.sw.Apply(b.ctx, "flow delete cookie=0/0\nflow add cookie=1,ip,actions=dec_ttl,output:2\nflow add cookie=2,ipv6,actions=output:2"); err != nil {
		t.Fatal(err)
	}
	for packet, want := range map[string]string{
		"in_port=1,tcp,nw_ttl=64": "tcp", "in_port=1,udp,nw_ttl=64": "udp", "in_port=1,tcp6,nw_ttl=64": "ipv6", "in_port=1,udp6,nw_ttl=64": "ipv6",
	} {
		text, err := b.ctrl.Trace(b.ctx, bridgeName, packet)
		if err != nil {
			t.Fatal(err)
		}
		got, err := flows.ParseTrace(text, "br-twill")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := flows.ParseMatch(got.Megaflow).Get(want); !ok {
			t.Errorf("%s: megaflow %s, want it to match %s", packet, got.Megaflow, want)
		}
	}
}

// TestTheTracesThatSeedTheFuzzerAreReal writes them with -update.
func TestTheTracesThatSeedTheFuzzerAreReal(t *testing.T) {
	b := startBridge(t, 1, 2, 3, 9)
	s := readScenario(t, "testdata/three-dual.txtar")
	d := desired(t, s.world)
	b.become(d)
	tr := tracer{b, d, flows.NamesOf(s.world)}
	var out strings.Builder
	for _, packet := range []string{
		webPort + ",dl_dst=0e:77:00:00:00:01,tcp,nw_ttl=64,nw_src=198.18.1.2,nw_dst=198.18.1.3",
		webPort + ",dl_dst=0e:77:00:00:00:01,udp,nw_ttl=64,nw_src=198.18.1.2,nw_dst=198.18.2.9,udp_dst=53",
		webPort + ",arp,arp_op=1,arp_sha=0a:58:00:00:01:02,arp_spa=198.18.1.2,arp_tpa=198.18.1.1",
		"in_port=3,dl_src=0a:58:00:00:01:04,tcp6,nw_ttl=64,ipv6_src=2001:db8:1:1::4,ipv6_dst=2001:db8:1:1::3",
		"in_port=9,tcp",
	} {
		text, got := tr.trace(packet)
		if got.Last().Cookie == 0 || got.Megaflow == "" || got.Final == "" {
			t.Errorf("%s is read as %+v", packet, got)
		}
		fmt.Fprintf(&out, "%s\n\n", text)
	}
	if *update {
		if err := os.WriteFile("testdata/traces", []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("testdata/traces")
	if err != nil {
		t.Fatal(err)
	}
	if len(have) == 0 {
		t.Error("testdata/traces is empty")
	}
}
