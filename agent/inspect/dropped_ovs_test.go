package inspect_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// receive lets a packet of pod default/web-0 into the bridge.
func (n *node) receive(rest string) {
	n.t.Helper()
	packet := "in_port(1),eth(src=0a:58:00:00:01:02,dst=0e:77:00:00:00:01)," + rest
	if _, err := n.ctrl.Call(n.t.Context(), "netdev-dummy/receive", "p1", packet); err != nil {
		n.t.Fatal(err)
	}
}

// until waits for the datapath, which takes packets in when it gets to it.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s not yet: %s", what)
		}
	}
}

func (n *node) megaflows(ctx context.Context) (string, error) {
	return n.ctrl.Call(ctx, "dpctl/dump-flows", "-m")
}

// TestDropsTellTheLastPacketsByReasonAndOwner sends packets into the datapath, and looks whether each that is dropped is
// told with its addresses and ports at the reason and the object of its drop, and none of those that are not.
func TestDropsTellTheLastPacketsByReasonAndOwner(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s := n.subject()
	s.Megaflows, s.Datapath = n.megaflows, func() string { return "netdev" }
	tcp := func(src, dst string, port int) string {
		return fmt.Sprintf("eth_type(0x0800),ipv4(src=%s,dst=%s,proto=6,tos=0,ttl=64,frag=no),tcp(src=40000,dst=%d),tcp_flags(syn)", src, dst, port)
	}
	sent := []struct {
		packet string
		reason flows.Reason
		owner  flows.Owner
		says   inspect.DroppedPacket
	}{
		{tcp("203.0.113.9", "198.18.1.3", 80), flows.DropSpoofed, "pod/default/web-0", inspect.DroppedPacket{Source: "203.0.113.9", Destination: "198.18.1.3", DestinationPort: 80}},
		{tcp("198.18.1.2", "198.18.1.99", 80), flows.DropNoPod, "node/alpha", inspect.DroppedPacket{Source: "198.18.1.2", Destination: "198.18.1.99", DestinationPort: 80}},
		{tcp("198.18.1.2", "198.18.77.1", 81), flows.DropNoNode, "pipeline", inspect.DroppedPacket{Source: "198.18.1.2", Destination: "198.18.77.1", DestinationPort: 81}},
		{tcp("198.18.1.2", "198.19.0.77", 80), flows.DropNoEndpoint, "service/default/away:80", inspect.DroppedPacket{Source: "198.18.1.2", Destination: "198.19.0.77", DestinationPort: 80}},
		{tcp("198.18.1.2", "198.18.1.3", 82), flows.DropIngress, "pod/shop/db", inspect.DroppedPacket{Source: "198.18.1.2", Destination: "198.18.1.3", DestinationPort: 82}},
	}
	for i := range sent {
		n.receive(sent[i].packet)
		sent[i].says.From, sent[i].says.Protocol, sent[i].says.SourcePort = "pod default/web-0", "tcp", 40000
	}
	n.receive(tcp("198.18.1.2", "198.18.1.3", 5432)) // allowed
	var list []inspect.Drop
	total := 0
	until(t, "each packet is told", func() bool {
		var err error
		if list, err = s.Drops(t.Context()); err != nil {
			t.Fatal(err)
		}
		total = 0
		for _, d := range list {
			total += len(d.Last)
		}
		return total >= len(sent)
	})
	for _, c := range sent {
		found := false
		for _, d := range list {
			for _, x := range d.Last {
				found = found || d.Reason == c.reason && d.Owner == c.owner && x == c.says
			}
		}
		if !found {
			t.Errorf("%s by %s: %+v is not among %+v", c.reason, c.owner, c.says, list)
		}
	}
	if total != len(sent) {
		t.Errorf("%d packets are told, %d were dropped: %+v", total, len(sent), list)
	}
	// However many there are, five are told for a reason and an owner.
	for i := range 12 {
		n.receive(tcp(fmt.Sprintf("203.0.%d.9", 2*i), "198.18.1.3", 80))
	}
	until(t, "all are counted", func() bool {
		var err error
		if list, err = s.Drops(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			if d.Reason == flows.DropSpoofed && d.Owner == "pod/default/web-0" && d.Packets == 13 {
				return true
			}
		}
		return false
	})
	for _, d := range list {
		if d.Reason == flows.DropSpoofed && d.Owner == "pod/default/web-0" && len(d.Last) != 5 {
			t.Errorf("%d packets are told: %+v", len(d.Last), d.Last)
		}
	}
}

// recorded is a Tracer that answers always the same.
type recorded string

func (r recorded) Trace(context.Context, string, string, ...string) (string, error) {
	return string(r), nil
}

// TestTheKernelsDatapathTellsRanges: it keeps no more of a packet than the flow looks at.
func TestTheKernelsDatapathTellsRanges(t *testing.T) {
	n := startNode(t, alpha(), 1, 2, 3)
	spoofed, err := n.ctrl.Trace(t.Context(), bridgeName, "in_port=1,dl_src=0a:58:00:00:01:02,tcp,nw_src=203.0.113.9,nw_dst=198.18.1.3,tcp_dst=80")
	if err != nil {
		t.Fatal(err)
	}
	s := n.subject()
	s.Datapath = func() string { return "system" }
	s.Tracer = func(context.Context) (inspect.Tracer, error) { return recorded(spoofed), nil }
	for _, c := range []struct{ line, want string }{
		{"recirc_id(0),in_port(4),eth_type(0x0800),ipv4(src=203.0.113.8/255.255.255.252,frag=no), packets:3, bytes:294, used:0.52s, actions:drop", "any 203.0.113.8/30:0 → any:0, 3, 0.52"},
		{"recirc_id(0),in_port(4),eth_type(0x0800),ipv4(src=203.0.113.9,dst=0.0.0.0/0.0.0.0,proto=6,frag=no),tcp(src=0/0,dst=80), packets:0, bytes:0, used:never, actions:drop", "tcp 203.0.113.9:0 → any:80, 0, 0"},
		{"recirc_id(0),in_port(4),eth_type(0x0800),ipv4(src=203.0.113.9,dst=198.18.1.3,proto=17,frag=no),udp(src=1024/0xfc00,dst=53/0xffff), packets:0, bytes:0, used:never, actions:drop", "udp 203.0.113.9:0 → 198.18.1.3:53, 0, 0"},
		{"recirc_id(0),in_port(4),eth_type(0x86dd),ipv6(src=2001:db8::/ffff:ffff::,dst=ff02::1/::,proto=58/0,frag=no), packets:1, bytes:70, used:9.1s, actions:drop", "any 2001:db8::/32:0 → any:0, 1, 9.1"},
		{"recirc_id(0),in_port(4),eth_type(0x0806),arp(sip=198.18.1.9,tip=198.18.1.1/255.255.255.255,op=1/0xff), packets:1, bytes:42, used:1s, actions:drop", "arp 198.18.1.9:0 → 198.18.1.1:0, 1, 1"},
		{"recirc_id(0),in_port(4),eth_type(0x88cc), packets:1, bytes:42, used:1s, actions:drop", "ethertype 0x88cc any:0 → any:0, 1, 1"},
		{"recirc_id(0),in_port(4),eth_type(0x0800),ipv4(frag=no), packets:1, bytes:42, used:1s, actions:5", ""},
		{"half a line, packets:", ""},
	} {
		s.Megaflows = func(context.Context) (string, error) { return c.line + "\n", nil }
		list, err := s.Drops(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range list {
			for _, x := range d.Last {
				got = append(got, fmt.Sprintf("%s %s:%d → %s:%d, %d, %g", x.Protocol, x.Source, x.SourcePort, x.Destination, x.DestinationPort, x.More, x.Ago))
			}
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s\n  tells %q, want %q", c.line, got, c.want)
		}
	}
}

// TestATraceFollowsWhatSessionAffinityHasLearned: a client that has an entry gets its endpoint, and the trace says so; one
// that has none, or whose endpoint has left, gets what the group chooses.
func TestATraceFollowsWhatSessionAffinityHasLearned(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	s := n.subject()
	q := inspect.Question{From: "default/web-0", To: "service/default/dns"}
	before, err := s.Trace(t.Context(), q)
	if err != nil || before.Remembered || strings.Contains(before.Verdict.Sentence, "session affinity") {
		t.Fatalf("nothing is learned yet: %+v, %v", before.Verdict, err)
	}
	learn := func(endpoint string) {
		t.Helper()
		n.apply("flow add cookie=0x7374696b7900,table=42,priority=100,udp,nw_src=198.18.1.2,nw_dst=198.19.0.53,tp_dst=53 actions=set_field:" + endpoint + "->reg3,set_field:0x14e9->reg4,set_field:0x4000/0x4000->reg0\n")
	}
	other, hex := "198.18.1.4:5353", "0xc6120104" // the one that the hash does not choose
	if before.Endpoint == other {
		other, hex = "198.18.2.11:5353", "0xc612020b"
	}
	learn(hex)
	after, err := s.Trace(t.Context(), q)
	if err != nil || after.Endpoint != other || !after.Remembered || !strings.HasSuffix(after.Verdict.Sentence, "(the endpoint that this client had before: session affinity)") {
		t.Errorf("learned: to %s, want %s: %+v, %v", after.Endpoint, other, after.Verdict, err)
	}
	said := ""
	for _, step := range after.Steps {
		if step.Table == "sticky" {
			said = string(step.Owner) + " " + step.Sentence
		}
	}
	if address, _, _ := strings.Cut(other, ":"); !strings.Contains(said, "learned ") || !strings.Contains(said, "the client had the endpoint "+address) || !strings.Contains(said, "at port 5353") {
		t.Errorf("the step says %q", said)
	}
	why, err := s.Why(t.Context(), q)
	if err != nil || why.Endpoint != other || !strings.Contains(strings.Join(why.Notes, " "), "session affinity: this client had the endpoint "+other) {
		t.Errorf("%+v, %v", why, err)
	}
	if tr, err := s.Trace(t.Context(), inspect.Question{From: "shop/db", To: "service/default/dns"}); err != nil || tr.Remembered {
		t.Errorf("another client: %+v, %v", tr.Verdict, err)
	}
	learn("0xc6120909") // an endpoint that has left
	gone, err := s.Trace(t.Context(), q)
	if err != nil || gone.Remembered || gone.Endpoint != before.Endpoint {
		t.Errorf("an endpoint that has left: to %s, %+v, %v", gone.Endpoint, gone.Verdict, err)
	}
	v, err := s.Verify(t.Context(), 0, 0)
	if err != nil || v.Learned != 1 || v.Live != v.Wanted || v.Differences() != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}
