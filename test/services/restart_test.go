package services

import (
	"fmt"
	"net"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestWhatWentWhileNoAgentRanIsForgotten: an endpoint and a Service go while the agent of the client's node is away. Its next run
// has seen neither of them, and must forget their connections all the same, and only theirs.
func TestWhatWentWhileNoAgentRanIsForgotten(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "old@node-2", "new@node-2")
	client := pods["client"].NetNS
	moving := service{name: "moving", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 53, target: 5353, endpoints: []lab.Pod{pods["old"]}}
	ending := service{name: "ending", ips: []string{"198.19.0.11", "2001:db8:1919::b"}, port: 53, target: 5353, endpoints: []lab.Pod{pods["old"]}}
	staying := service{name: "staying", ips: []string{"198.19.0.12", "2001:db8:1919::c"}, port: 53, target: 5353, endpoints: []lab.Pod{pods["old"]}}
	for _, name := range []string{"old", "new"} {
		serve(t, pods[name].NetNS, name, 5353)
	}
	labtest.Apply(t, l, moving.String()+"---\n"+staying.String())
	end := labtest.Apply(t, l, ending.String())
	conns := map[string]net.Conn{}
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, s := range []service{moving, ending, staying} {
			ready(t, client, s.vip(family))
			c, err := dial(client, "udp", s.vip(family), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if a, err := ask(c); err != nil || a.server != "old" {
				t.Fatalf("%s %s: %v, %v", s.name, family, a, err)
			}
			conns[s.name+family] = c
		}
	}
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	moving.endpoints = []lab.Pod{pods["new"]}
	labtest.Apply(t, l, moving.String())
	end()
	for name, c := range conns {
		if a, err := ask(c); err != nil || a.server != "old" {
			t.Errorf("without an agent, %s: %v, %v; want all as before", name, a, err)
		}
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		labtest.Eventually(t, 2*patience, family+": the client has to reach the new endpoint", func() error {
			if a, err := askBriefly(conns["moving"+family]); err != nil || a.server != "new" {
				return fmt.Errorf("%v, %v", a, err)
			}
			return nil
		})
		labtest.Eventually(t, 2*patience, family+": nobody answers for a Service that is gone", func() error {
			if a, err := askBriefly(conns["ending"+family]); err == nil {
				return fmt.Errorf("%s answers", a.server)
			}
			return nil
		})
		if a, err := ask(conns["staying"+family]); err != nil || a.server != "old" {
			t.Errorf("%s, the one that nothing happened to: %v, %v", family, a, err)
		}
	}
}
