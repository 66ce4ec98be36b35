package flows_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/flows"
)

// The packets of testdata/trace.txt travel the bridge of node alpha of testdata/three-dual.txtar.
// Each field is a pair, IPv4 and IPv6.

type place struct {
	name   string
	v4, v6 string
}

func destinations() []place {
	return []place{
		{"pod shop/db here", "198.18.1.3", "2001:db8:1:1::3"},
		{"pod default/web-0 here", "198.18.1.2", "2001:db8:1:1::2"},
		{"pod on peer beta", "198.18.2.9", "2001:db8:1:2::9"},
		{"own gateway address", "198.18.1.1", "2001:db8:1:1::1"},
		{"own node address", "198.51.100.1", "2001:db8:f::1"},
		{"node address of beta", "198.51.100.2", "2001:db8:f::2"},
		{"gateway address of beta", "198.18.2.1", "2001:db8:1:2::1"},
		{"unused in own podCIDR", "198.18.1.77", "2001:db8:1:1::77"},
		{"unused in cluster CIDR", "198.18.99.1", "2001:db8:1:99::1"},
		{"outside", "203.0.113.5", "2001:db8:ffff::5"},
		{"multicast", "224.0.0.251", "ff02::fb"},
		{"broadcast", "255.255.255.255", ""},
		{"link-local", "169.254.1.1", "fe80::1"},
	}
}

// entry is where a packet comes from: what it has in common whatever its family.
type entry struct {
	name   string
	fields string
	place  // its source address
}

const (
	webPort = "in_port=1,dl_src=0a:58:00:00:01:02"
	fromSky = "dl_src=0e:77:00:00:00:01"
)

func entries() []entry {
	pod := place{v4: "198.18.1.2", v6: "2001:db8:1:1::2"}
	remote := place{v4: "198.18.2.9", v6: "2001:db8:1:2::9"}
	return []entry{
		{"pod default/web-0", webPort, pod},
		{"pod default/web-0 with another MAC", "in_port=1,dl_src=0a:58:00:00:01:03", pod},
		{"pod default/web-0 with the address of shop/db", webPort, place{v4: "198.18.1.3", v6: "2001:db8:1:1::3"}},
		{"pod default/web-0 with MAC and address of shop/db", "in_port=1,dl_src=0a:58:00:00:01:03", place{v4: "198.18.1.3", v6: "2001:db8:1:1::3"}},
		{"pod default/web-0 with a link-local address", webPort, place{v4: "169.254.0.7", v6: "fe80::7"}},
		{"pod default/old, whose interface has a larger MTU", "in_port=3,dl_src=0a:58:00:00:01:04", place{v4: "198.18.1.4", v6: "2001:db8:1:1::4"}},
		{"host", "in_port=32769,dl_src=0e:77:00:00:00:02", place{v4: "198.51.100.1", v6: "2001:db8:f::1"}},
		{"tunnel from node beta", "in_port=32768,tun_id=7,tun_src=198.51.100.2,tun_dst=198.51.100.1," + fromSky, remote},
		{"tunnel from an address that is no node's", "in_port=32768,tun_id=7,tun_src=198.51.100.99,tun_dst=198.51.100.1," + fromSky, remote},
		{"tunnel from node beta with another VNI", "in_port=32768,tun_id=8,tun_src=198.51.100.2,tun_dst=198.51.100.1," + fromSky, remote},
		{"a port that is no pod's", "in_port=9,dl_src=0a:58:00:00:01:02", pod},
	}
}

func TestWhatBecomesOfEachPacket(t *testing.T) {
	b := startBridge(t, 1, 2, 3, 9)
	s := readScenario(t, "testdata/three-dual.txtar")
	d := desired(t, s.world)
	b.become(d)
	tr := tracer{b, d, flows.NamesOf(s.world)}

	var out strings.Builder
	for _, variant := range []struct{ name, v4, v6 string }{
		{"TCP with TTL 64", "tcp,nw_ttl=64,tcp_dst=80", "tcp6,nw_ttl=64,tcp_dst=80"},
		{"TCP with TTL 1", "tcp,nw_ttl=1,tcp_dst=80", "tcp6,nw_ttl=1,tcp_dst=80"},
		{"UDP to the tunnel port", "udp,nw_ttl=64,udp_dst=6081", "udp6,nw_ttl=64,udp_dst=6081"},
	} {
		for _, e := range entries() {
			fmt.Fprintf(&out, "== %s, from %s\n", variant.name, e.name)
			var verdicts []string
			went := map[string][]string{}
			became := func(to, verdict string) {
				if went[verdict] == nil {
					verdicts = append(verdicts, verdict)
				}
				went[verdict] = append(went[verdict], to)
			}
			packets := 0
			for _, to := range destinations() {
				v4 := tr.verdict(fmt.Sprintf("%s,dl_dst=0e:77:00:00:00:01,%s,nw_src=%s,nw_dst=%s", e.fields, variant.v4, e.v4, to.v4))
				v6 := v4
				if to.v6 != "" {
					v6 = tr.verdict(fmt.Sprintf("%s,dl_dst=0e:77:00:00:00:01,%s,ipv6_src=%s,ipv6_dst=%s", e.fields, variant.v6, e.v6, to.v6))
				}
				packets++
				if v4 == v6 {
					became(to.name, v4)
				} else {
					became(to.name+" (IPv4)", v4)
					became(to.name+" (IPv6)", v6)
				}
			}
			for _, v := range verdicts {
				to := strings.Join(went[v], ", ")
				if len(went[v]) == packets && !strings.Contains(to, "(") {
					to = "all of them"
				}
				fmt.Fprintf(&out, "%s\n    %s\n", v, to)
			}
		}
	}
	tr.neighbours(&out)
	compareFile(t, "testdata/trace.txt", out.String())
}

// neighbours adds the ARP and Neighbor Discovery cases.
func (tr tracer) neighbours(out *strings.Builder) {
	const own, other, gw = "0a:58:00:00:01:02", "0a:58:00:00:01:03", "0e:77:00:00:00:02"
	arp := func(in, mac, op, sha, spa, tpa string) string {
		return fmt.Sprintf("%s,dl_src=%s,dl_dst=ff:ff:ff:ff:ff:ff,arp,arp_op=%s,arp_sha=%s,arp_spa=%s,arp_tpa=%s", in, mac, op, sha, spa, tpa)
	}
	const pod, host, peer = "in_port=1", "in_port=32769", "in_port=32768,tun_id=7,tun_src=198.51.100.2,tun_dst=198.51.100.1"
	nd := func(in, mac, typ, src, dst, more string) string {
		return fmt.Sprintf("%s,dl_src=%s,dl_dst=33:33:00:00:00:01,icmp6,nw_ttl=255,ipv6_src=%s,ipv6_dst=%s,icmpv6_type=%s,icmpv6_code=0%s", in, mac, src, dst, typ, more)
	}
	const self, link, solicited, gateway = "2001:db8:1:1::2", "fe80::858:ff:fe00:102", "ff02::1:ff00:1", ",nd_target=2001:db8:1:1::1"
	fmt.Fprintln(out, "== ARP and Neighbor Discovery")
	for _, c := range []struct{ name, packet string }{
		{"pod asks for its gateway", arp(pod, own, "1", own, "198.18.1.2", "198.18.1.1")},
		{"pod asks for another pod", arp(pod, own, "1", own, "198.18.1.2", "198.18.1.3")},
		{"pod asks for any address", arp(pod, own, "1", own, "198.18.1.2", "203.0.113.1")},
		{"pod announces its address", arp(pod, own, "1", own, "198.18.1.2", "198.18.1.2")},
		{"pod announces it in a reply", arp(pod, own, "2", own, "198.18.1.2", "198.18.1.2")},
		{"pod probes for duplicates", arp(pod, own, "1", own, "0.0.0.0", "198.18.1.2")},
		{"pod replies", arp(pod, own, "2", own, "198.18.1.2", "198.18.1.1")},
		{"pod with another's address", arp(pod, own, "1", own, "198.18.1.3", "198.18.1.1")},
		{"pod with another's sender MAC", arp(pod, own, "1", other, "198.18.1.2", "198.18.1.1")},
		{"pod with another's MAC", arp(pod, other, "1", own, "198.18.1.2", "198.18.1.1")},
		{"host asks for a pod", arp(host, gw, "1", gw, "198.18.1.1", "198.18.1.2")},
		{"host replies", arp(host, gw, "2", gw, "198.18.1.1", "198.18.1.2")},
		{"node beta sends a request", arp(peer, "0e:77:00:00:00:01", "1", "0e:77:00:00:00:01", "198.18.2.1", "198.18.1.2")},
		{"NS for the gateway", nd(pod, own, "135", self, solicited, gateway)},
		{"NS for any address", nd(pod, own, "135", self, solicited, ",nd_target=2001:db8:ffff::1")},
		{"NS from link-local", nd(pod, own, "135", link, solicited, gateway)},
		{"NS to the gateway itself", nd(pod, own, "135", self, "2001:db8:1:1::1", gateway)},
		{"NS to the gateway from link-local", nd(pod, own, "135", link, "2001:db8:1:1::1", gateway)},
		{"NS from no address (DAD)", nd(pod, own, "135", "::", solicited, ",nd_target=2001:db8:1:1::2")},
		{"NS with another's address", nd(pod, own, "135", "2001:db8:1:1::3", solicited, gateway)},
		{"NS with another's MAC", nd(pod, other, "135", self, solicited, gateway)},
		{"NA to all", nd(pod, own, "136", self, "ff02::1", ",nd_target=2001:db8:1:1::1,nd_tll=0a:58:00:00:01:02")},
		{"NA to the gateway", nd(pod, own, "136", self, "2001:db8:1:1::1", ",nd_target=2001:db8:1:1::1")},
		{"NA from link-local", nd(pod, own, "136", link, "ff02::1", ",nd_target=2001:db8:1:1::1")},
		{"RS", nd(pod, own, "133", link, "ff02::2", "")},
		{"RS from no address", nd(pod, own, "133", "::", "ff02::2", "")},
		{"RA from link-local", nd(pod, own, "134", link, "ff02::1", "")},
		{"RA to the gateway", nd(pod, own, "134", self, "2001:db8:1:1::1", "")},
		{"redirect to the gateway", nd(pod, own, "137", self, "2001:db8:1:1::1", "")},
		{"MLD report", nd(pod, own, "143", link, "ff02::16", "")},
		{"NS of the host for a pod", nd(host, gw, "135", "2001:db8:1:1::1", "ff02::1:ff00:2", ",nd_target=2001:db8:1:1::2")},
		{"NA of the host", nd(host, gw, "136", "2001:db8:1:1::1", "ff02::1", gateway)},
		{"NS from node beta", nd(peer, "0e:77:00:00:00:01", "135", "2001:db8:1:2::9", solicited, gateway)},
		{"NS from node beta to the gateway", nd(peer, "0e:77:00:00:00:01", "135", "2001:db8:1:2::9", "2001:db8:1:1::1", gateway)},
		{"NA from node beta to the gateway", nd(peer, "0e:77:00:00:00:01", "136", "2001:db8:1:2::9", "2001:db8:1:1::1", gateway)},
		{"RA from node beta to the gateway", nd(peer, "0e:77:00:00:00:01", "134", "2001:db8:1:2::9", "2001:db8:1:1::1", "")},
		{"neither IP nor ARP from a pod", pod + ",dl_src=" + own + ",dl_dst=01:80:c2:00:00:00,dl_type=0x88cc"},
		{"neither IP nor ARP from the host", host + ",dl_src=" + gw + ",dl_dst=01:80:c2:00:00:00,dl_type=0x88cc"},
		{"neither IP nor ARP from node beta", peer + ",dl_src=0e:77:00:00:00:01,dl_dst=01:80:c2:00:00:00,dl_type=0x88cc"},
	} {
		fmt.Fprintf(out, "%-34s %s\n", c.name, tr.verdict(c.packet))
	}
}

type tracer struct {
	*bridge
	d     *flows.Desired
	names *flows.Names
}

func (tr tracer) trace(packet string) (string, flows.Trace) {
	tr.t.Helper()
	text, err := tr.ctrl.Trace(tr.ctx, bridgeName, packet)
	if err != nil {
		tr.t.Fatal(err)
	}
	got, err := flows.ParseTrace(text, "br-twill")
	if err != nil {
		tr.t.Fatal(err)
	}
	return text, got
}

var outputLine = regexp.MustCompile(`output port is (\d+)$|^output:(\d+)$`)

// verdict says what becomes of a packet.
func (tr tracer) verdict(packet string) string {
	tr.t.Helper()
	_, got := tr.trace(packet)
	last := got.Last()
	f, ok := tr.d.Flow(last.Cookie)
	if !ok {
		tr.t.Fatalf("%s: no flow of ours decided: %+v", packet, got)
	}
	if f.Drop != "" {
		if !got.Dropped() && !strings.Contains(got.Datapath, "gt(drop),le(drop)") {
			tr.t.Errorf("%s: %s says drop, the datapath %s", packet, f, got.Datapath)
		}
		return fmt.Sprintf("dropped by %s: %s", f.Owner, f.Drop)
	}
	final := flows.ParseMatch(got.Final)
	get := func(name string) string { v, _ := final.Get(name); return v }
	var where string
	for _, a := range last.Actions {
		if m := outputLine.FindStringSubmatch(a); m != nil {
			where = m[1] + m[2]
		}
		if a == "IN_PORT" {
			if got.Dropped() {
				tr.t.Errorf("%s: the answer is lost: %s", packet, got.Datapath)
			}
			if get("arp_op") != "" {
				return fmt.Sprintf("answered to %s: %s is at %s", get("arp_tpa"), get("arp_spa"), get("arp_sha"))
			}
			return fmt.Sprintf("answered to %s: %s is at %s", get("ipv6_dst"), get("nd_target"), get("nd_tll"))
		}
	}
	if strings.Contains(got.Datapath, "check_pkt_len(") {
		// The final flow of such a trace is from before the packet was measured; both ways are among the steps.
		return "small ones to " + tr.names.Port(where) + ", large ones to " + tr.names.Port(tr.large(got))
	}
	if got.Dropped() && strings.Contains(strings.Join(last.Actions, " "), "skipping output to input port") {
		return "dropped by OVS: it would leave by the port it came from"
	}
	switch where {
	case fmt.Sprint(flows.TunnelPort):
		return fmt.Sprintf("tunnel to %s, ttl %s", get("tun_dst"), get("nw_ttl"))
	case fmt.Sprint(flows.GatewayPort):
		return fmt.Sprintf("to the host, MAC %s, ttl %s", get("dl_dst"), get("nw_ttl"))
	}
	if got.Dropped() {
		tr.t.Errorf("%s: lost before port %s: %s", packet, where, got.Datapath)
	}
	return fmt.Sprintf("%s, MAC %s, ttl %s", tr.names.Port(where), get("dl_dst"), get("nw_ttl"))
}

// large is the port that a packet above the MTU leaves by.
func (tr tracer) large(got flows.Trace) string {
	for _, s := range got.Steps {
		if strings.Contains(s.Match, "reg0=0x100/0x100") {
			for _, a := range s.Actions {
				if m := outputLine.FindStringSubmatch(a); m != nil {
					return m[1] + m[2]
				}
			}
		}
	}
	return "none"
}

func compareFile(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}
