package main

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

var update = flag.Bool("update", false, "write the golden texts")

func sampleStatus() agent.Status {
	yes, no, live := true, false, 76
	a := netip.MustParseAddr
	return agent.Status{
		Version: "v1.2.3", Node: "worker-1", OVS: "ovs-vswitchd (Open vSwitch) 3.1.0", Datapath: "netdev", Bridge: "br-twill",
		Tunnel: "geneve, UDP port 6081, VNI 7", Why: "198.51.100.1 on eth0: the first InternalIP of the Node object that this host carries",
		MTU: 1450, LinkMTU: 1500, Interface: "eth0", Flows: 77, Live: &live,
		Last:      agent.Applied{Added: 9, TookMS: 54, Cause: "pod/default/api"},
		Repaired:  agent.Repairs{Flows: 2, Host: 1},
		Watchers:  []agent.Watcher{{Name: "kubernetes", Problem: "no answer from https://192.0.2.1:6443 since 12:00:03"}, {Name: "ovsdb"}, {Name: "ovs-vswitchd"}},
		Addresses: attach.Usage{Ranges: []attach.Range{{CIDR: netip.MustParsePrefix("198.18.1.0/24"), Used: 2, Cooling: 1, Free: 250, Capacity: 253}}},
		Peers: []agent.PeerStatus{
			{Node: "worker-2", Tunnel: a("198.51.100.2"), Reachable: &yes, RTTMS: 0.42, MTU: 1450, Last: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
			{Node: "worker-3", Tunnel: a("198.51.100.3"), Reachable: &no, Last: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), Problem: "no answer within 1s"},
			{Node: "worker-4", Tunnel: a("198.51.100.4")},
			{Node: "worker-5", Tunnel: a("198.51.100.5"), Reachable: &yes, RTTMS: 1.07, Narrow: true, Last: time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC), Problem: "small packets pass, those of 1450 bytes do not"},
		},
		Pods: []agent.PodStatus{{Namespace: "default", Name: "web-0", IfName: "eth0", Port: "tw0a1b2c3d4e5f6", OFPort: 1, MAC: "0a:58:c6:12:01:02", MTU: 1450,
			Addresses: []netip.Addr{a("198.18.1.2"), a("2001:db8:1:1::2")}}},
		Problems: []string{"peer worker-3 does not answer through the tunnel (198.51.100.3): is UDP port 6081 open between the nodes, does its agent run?"},
	}
}

func sampleTrace() traceResult {
	return traceResult{
		Hops: []inspect.Trace{
			{Node: "worker-1", What: "TCP to port 80 from 198.18.1.2 (pod default/web-0) to 198.18.2.2", Datapath: "set(tunnel(tun_id=0x7,dst=198.51.100.2,ttl=64,tp_dst=6081,flags(df|key))),2", Steps: []inspect.Step{
				{Table: "classify", Owner: "pod/default/web-0", Sentence: "packets from pod default/web-0: mark as sent by a pod, continue at guard"},
				{Table: "guard", Owner: "pod/default/web-0", State: inspect.Altered, Sentence: "IPv4 packets from pod default/web-0: continue at route; ALTERED, wanted: IPv4 packets from pod default/web-0, with source MAC 0a:58:c6:12:01:02, from 198.18.1.2 (pod default/web-0): continue at route"},
				{Table: "output", Owner: "pipeline", Large: true, Sentence: "packets larger than the MTU: send to the host"},
				{Table: "route", Owner: "node/worker-2", Sentence: "IPv4 packets to 198.18.2.0/24 (pods of node worker-2): choose the tunnel to 198.51.100.2 (node worker-2), with VNI 7, continue at output"},
			}},
			{Node: "worker-2", What: "TCP to port 80 from 198.18.1.2 to 198.18.2.2", Steps: []inspect.Step{
				{Table: "route", Owner: "node/worker-2", Drop: flows.DropNoPod, Sentence: "IPv4 packets to 198.18.2.0/24 (pods of node worker-2): drop (no-such-pod): no pod of this node has the destination address"},
			}},
		},
		Verdict: inspect.Verdict{Outcome: inspect.Dropped, Sentence: "dropped by node/worker-2 (no-such-pod): no pod of this node has the destination address"},
	}
}

// texts are all texts that an operator reads, by the name of their golden file.
func texts() map[string]func(screen) {
	st := sampleStatus()
	list := []inspect.Flow{
		{State: inspect.Alien, Table: "route", Packets: 12345, Bytes: 9876543, Sentence: "TCP packets over IPv4: drop", Raw: "cookie=0xdead,table=60,priority=7,tcp actions=drop"},
		{Owner: "pod/default/web-0", Table: "classify", Packets: 7, Bytes: 700, Sentence: "packets from pod default/web-0: mark as sent by a pod, continue at guard", Raw: "cookie=0x1,table=0,priority=100,in_port=1 actions=set_field:0x1/0x7->reg0,goto_table:10"},
	}
	before := map[string]inspect.Flow{list[0].Raw: {Packets: 12145}}
	return map[string]func(screen){
		"status": func(s screen) { statusText(s, st) }, "status-peers": func(s screen) { peersText(s, st) },
		"status-ipam": func(s screen) { ipamText(s, st) }, "status-pods": func(s screen) { podsText(s, st) },
		"flows":         func(s screen) { flowsText(s, list, nil, 0, false) },
		"flows-watch":   func(s screen) { flowsText(s, list, before, 2*time.Second, true) },
		"trace-service": func(s screen) { traceText(s, sampleServiceTrace(), false) },
		"why-service":   func(s screen) { whyText(s, sampleServiceWhy()) },
		"why-rejected":  func(s screen) { whyText(s, sampleRejected()) },
		"verify-groups": func(s screen) { verifyText(s, sampleGroups()) },
		"verify-dump":   func(s screen) { verifyText(s, sampleUngrouped()) },
		"trace":         func(s screen) { traceText(s, sampleTrace(), false) },
		"drops": func(s screen) {
			dropsText(s, []inspect.Drop{{Reason: flows.DropSpoofed, Owner: "pod/default/web-0", Sentence: flows.DropSpoofed.Sentence(), Packets: 4, Bytes: 392, Last: []inspect.DroppedPacket{
				{From: "pod default/web-0", Protocol: "tcp", Source: "203.0.113.9", Destination: "198.18.1.3", SourcePort: 40000, DestinationPort: 80, More: 2, Ago: 0.42},
				{From: "pod default/web-0", Protocol: "icmpv6", Source: "2001:db8::9", Destination: "2001:db8:1:1::3"},
				{From: "pod default/web-0", Protocol: "udp", Source: "2001:db8::9", Destination: "2001:db8:1:1::3", SourcePort: 40000, DestinationPort: 53}}}, {Reason: flows.DropTransit, Owner: "pipeline"}}, nil, 0, false)
		},
		"why": func(s screen) {
			whyText(s, whyResult{Path: []string{"worker-1", "worker-2"}, Why: inspect.Why{
				Node: "worker-2", What: "TCP to port 80 from 198.18.1.2 to 198.18.2.2", Verdict: sampleTrace().Verdict,
				Because: "198.18.2.2 is in podCIDR 198.18.2.0/24 of Node worker-2, and no pod attached there has it",
				Remedy:  "a pod with that address has to run on node worker-2", Notes: []string{"the agent is behind, so the bridge may not yet do what is wanted: ovs-vswitchd went away"},
			}})
		},
		"verify": func(s screen) {
			verifyText(s, inspect.Verification{Node: "worker-1", Wanted: 76, Live: 76, Sampled: 300,
				Flows:   []flows.Difference{{Kind: flows.Altered, Owner: "pod/shop/db", Wanted: "cookie=0x2,table=60,priority=200,ip,nw_dst=198.18.1.3 actions=goto_table:90", Live: "cookie=0x2,table=60,priority=200,ip,nw_dst=198.18.1.3 actions=drop", What: `actions are "drop", wanted "goto_table:90"`}},
				Learned: 2, Untold: 7, UntoldPackets: []string{"TCP to port 80 from 198.18.1.4 (pod default/old) to 198.19.0.10 (Service default/web)", "UDP to port 53 from 198.18.1.4 (pod default/old) to 198.19.0.53 (Service default/dns)"},
				Verdicts: []inspect.VerdictFailure{{What: "TCP to port 80 from 198.18.1.2 (pod default/web-0) to 198.18.1.3 (pod shop/db)", Packet: "in_port=1,tcp,nw_dst=198.18.1.3", Expected: "delivered to pod shop/db", Got: "dropped (altered): dropped at route"}},
			})
		},
		"check": func(s screen) {
			checkText(s, []agent.Finding{{Check: "ovsdb", Result: agent.CheckOK, Detail: "answers at unix:/run/openvswitch/db.sock"},
				{Check: "port 6081", Result: agent.CheckFailed, Detail: "UDP port 6081 is in use, and not by Twill", Remedy: "find its owner with `ss -lunp`; stop it, or set --tunnel-port on every node"},
				{Check: "podCIDR", Result: agent.CheckSkipped, Detail: "no agent answers that could say what the Node has"}})
		},
	}
}

// TestTextsFitTheScreen writes each text at two widths; only what has no spaces (lines of ovs-ofctl, addresses in
// tables) may be wider than the screen.
func TestTextsFitTheScreen(t *testing.T) {
	for name, write := range texts() {
		for _, width := range []int{80, 160} {
			var b bytes.Buffer
			write(screen{Writer: &b, width: width})
			path := filepath.Join("testdata", fmt.Sprintf("%s.%d.txt", name, width))
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("%s at %d columns:\n%s", name, width, d)
			}
			for line := range strings.Lines(b.String()) {
				line = strings.TrimRight(line, "\n")
				if n := utf8.RuneCountInString(line); n > width && !strings.Contains(line, "cookie=") && !strings.Contains(line, "group_id=") && !strings.Contains(line, "(tun_id=") {
					t.Errorf("%s: %d columns of %d: %q", name, n, width, line)
				}
			}
			if strings.Contains(b.String(), "\x1b") {
				t.Errorf("%s: colour where there is no terminal", name)
			}
		}
	}
}

func TestOnlyATerminalSeesColour(t *testing.T) {
	var b bytes.Buffer
	whyText(screen{Writer: &b, colour: true}, whyResult{})
	if !strings.HasPrefix(b.String(), "\x1b[31mdropped\x1b[0m") {
		t.Errorf("on a terminal: %q", b.String())
	}
	if s := newScreen(&b); s.colour {
		t.Error("a buffer is no terminal")
	}
}

// TestHelpFitsTheScreen: only examples, which are there to be copied, and a flag's default may be wider.
func TestHelpFitsTheScreen(t *testing.T) {
	t.Setenv("COLUMNS", "80")
	list := [][]string{{}}
	for _, c := range everyCommand("twill") {
		list = append(list, strings.Fields(c.CommandPath())[1:])
	}
	if len(list) < 15 {
		t.Errorf("only %v", list)
	}
	for _, command := range list {
		code, out, _ := twill(t, "twill", append(append([]string{}, command...), "--help")...)
		if path := strings.Join(append([]string{"twill"}, command...), " "); code != 0 || !strings.Contains(out, "Usage:\n  "+path) || !strings.Contains(out, "--help") {
			t.Errorf("%v: status %d, %q", command, code, out)
		}
		for line := range strings.Lines(out) {
			line = strings.TrimRight(line, "\n")
			if utf8.RuneCountInString(line) > 80 && !strings.HasPrefix(line, "  twill ") && !strings.HasPrefix(line, "  ovs-ofctl ") && !strings.Contains(line, "(default \"") && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("%v: %d columns: %q", command, utf8.RuneCountInString(line), line)
			}
		}
	}
	if _, out, _ := twill(t, "twill", "why", "--help"); !strings.Contains(out, "\n      --endpoint string          ADDRESS:PORT of the endpoint that the Service\n                                 shall choose;") {
		t.Errorf("why --help:\n%s", out)
	}
}
