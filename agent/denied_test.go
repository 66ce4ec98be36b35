package agent

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/flows"
)

func isolatedWorld() *flows.World {
	pod := flows.Attachment{OFPort: 1, Namespace: "shop", Pod: "db", IfName: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.2"), netip.MustParseAddr("2001:db8:1:1::2")}}
	return &flows.World{
		Pods: map[flows.Owner][]flows.Attachment{pod.Owner(): {pod}},
		Policy: &flows.Policy{Pods: (*flows.Shards[*flows.Isolation])(nil).With(
			map[string]*flows.Isolation{"shop/db": {Identity: 1<<31 | 7, Ingress: []string{"shop/deny", "shop/web"}}}, nil)},
	}
}

func TestADenialIsLoggedWithItsPoliciesAndCounted(t *testing.T) {
	log, hook := test.NewNullLogger()
	d := newDenials(&denials{log: log})
	w := isolatedWorld()
	const denied = "recirc_id(0x5),in_port(3),ct_state(+new-est-rpl+trk),eth(),eth_type(0x0800),ipv4(src=198.18.2.9,dst=198.18.1.2,proto=6,frag=no),tcp(dst=80), packets:2, bytes:140, used:0.1s, flags:S, actions:drop\n"
	const other = "recirc_id(0),in_port(3),eth(),eth_type(0x0800),ipv4(src=198.18.2.9,dst=198.18.1.2,proto=6,frag=no), packets:9, bytes:140, used:0.1s, actions:drop\n"
	d.look(w, denied+other)
	if len(hook.Entries) != 1 {
		t.Fatalf("%d events, want 1: %v", len(hook.Entries), hook.Entries)
	}
	for k, want := range map[string]any{
		"policy": "networkpolicy/shop/deny networkpolicy/shop/web", "direction": flows.Ingress, "rule": "none",
		"src": "198.18.2.9", "dst": "198.18.1.2 (pod shop/db)", "proto": "tcp", "port": "80", "packets": uint64(2),
	} {
		if got := hook.Entries[0].Data[k]; got != want {
			t.Errorf("%s is %v, want %v", k, got, want)
		}
	}
	d.look(w, denied)
	if len(hook.Entries) != 1 {
		t.Error("the same packets were logged twice")
	}
	d.look(w, strings.ReplaceAll(denied, "packets:2", "packets:5"))
	if len(hook.Entries) != 2 || hook.Entries[1].Data["packets"] != uint64(3) {
		t.Errorf("three more packets were not logged as such: %v", hook.Entries)
	}
}

func TestDenialsBeyondTheLimitAreCountedOnly(t *testing.T) {
	log, hook := test.NewNullLogger()
	d := newDenials(&denials{log: log})
	var text strings.Builder
	for i := range maxDenials + 5 {
		text.WriteString(strings.ReplaceAll(
			"recirc_id(0x5),in_port(3),eth_type(0x86dd),ipv6(src=2001:db8:9::N,dst=2001:db8:1:1::2,proto=17,frag=no),udp(dst=53), packets:1, bytes:140, used:0.1s, actions:drop\n",
			"N", string(rune('a'+i%6))+string(rune('0'+i/6))))
	}
	d.look(isolatedWorld(), text.String())
	if len(hook.Entries) != maxDenials+1 || hook.LastEntry().Data["suppressed"] != 5 {
		t.Errorf("%d events, the last is %v; want %d and one that says 5 were suppressed", len(hook.Entries), hook.LastEntry().Data, maxDenials)
	}
}
