package inspect_test

import (
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/ovs"
)

// TestADumpOfARealBridgeAnswersAsTheBridge: what Open vSwitch prints, beside manifests, tells of each packet what the
// bridge itself tells, with what packets had left on it.
func TestADumpOfARealBridgeAnswersAsTheBridge(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	n.apply("flow add cookie=0x7374696b7900,table=42,priority=100,udp,nw_src=198.18.1.2,nw_dst=198.19.0.53,tp_dst=53 actions=set_field:0x4000/0x4000->reg0,set_field:0xc612020b->reg3,set_field:0x14e9->reg4\n")
	dump, err := n.sw.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	groups, err := n.sw.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := inspect.Recover(inspect.Dump{Flows: dump, Groups: groups, Manifests: directory(t, nodeManifests(), cityManifests)}, ovs.System())
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), 300, 5)
	if err != nil || v.Untraced != "" || v.Sampled+v.Untold != 300 || v.Differences() != 0 || v.Behind != "" {
		t.Errorf("%+v, %v", v, err)
	}
	live := n.subject()
	for _, q := range []inspect.Question{
		{From: "default/web-0", To: "service/default/web", Endpoint: "198.18.2.9:8080"},
		{From: "default/web-0", To: "service/default/dns"},
		{From: "shop/db", To: "service/default/dns"},
		{From: "default/web-0", To: "service/default/nobody"},
		{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 80},
		{From: "default/web-0", To: "shop/db", Proto: "tcp", Port: 5432},
		{From: "default/old", To: "198.18.2.77", Proto: "udp", Port: 7},
		{From: "node/beta", To: "198.18.1.99", Source: "198.18.2.9", Proto: "tcp", Port: 1},
		// Each client gets the endpoint that a hash of its address chooses.
		{From: "host", To: "198.19.0.53", Source: "203.0.113.1", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.2", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.3", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.4", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.5", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.6", Proto: "udp", Port: 53},
		{From: "host", To: "198.19.0.53", Source: "203.0.113.7", Proto: "udp", Port: 53},
	} {
		want, err := live.Why(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Why(t.Context(), q)
		if err != nil || got.Endpoint != want.Endpoint || got.Sentence != want.Sentence || got.Because != want.Because || got.Remedy != want.Remedy || strings.Join(got.Notes, "\n") != strings.Join(want.Notes, "\n") {
			t.Errorf("%+v:\n  dump   %s, because %s %q (%v)\n  bridge %s, because %s %q", q, got.Sentence, got.Because, got.Notes, err, want.Sentence, want.Because, want.Notes)
		}
	}
}

// TestADumpWithNamesIsTheSame: ovs-ofctl prints names of ports and tables on a terminal, numbers into a file.
func TestADumpWithNamesIsTheSame(t *testing.T) {
	n := startNode(t, city(t), 1, 2, 3)
	groups, err := n.sw.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	named, err := n.o.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", bridgeName)
	if err != nil || !strings.Contains(named, "in_port=p1") || !strings.Contains(named, "output:twill0") || !strings.Contains(named, "table=route") {
		t.Fatalf("%v: no names in %s", err, named)
	}
	d := inspect.Dump{Flows: named, Groups: groups, Manifests: directory(t, nodeManifests(), cityManifests)}
	s, err := inspect.Recover(d, ovs.System())
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), 0, 0)
	if err != nil || v.Differences() != 0 || v.Live < 200 {
		t.Errorf("%+v, %v", v, err)
	}
	d.Flows += " cookie=0x1, table=route, priority=1,in_port=nobody actions=drop\n"
	if _, err := inspect.Recover(d, ovs.System()); err == nil || !strings.Contains(err.Error(), `names a port "nobody", whose number it does not tell: have it written with --no-names`) {
		t.Errorf("a name that nothing explains: %v", err)
	}
}
