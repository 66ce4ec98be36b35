package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/flows"
)

func TestBridgeAndHostAreLookedAtForThoseObjectsOnlyThatChangeWhatTheyNeed(t *testing.T) {
	prefixes := func(all ...string) (out []netip.Prefix) {
		for _, s := range all {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	self := flows.Node{Name: "node-1", PodCIDRs: prefixes("198.18.1.0/24"), Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}
	peers := func(cidr string) map[string]flows.Node {
		return map[string]flows.Node{"node-2": {Name: "node-2", PodCIDRs: prefixes(cidr)}}
	}
	moved, wider := self, self
	moved.Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.9")}
	wider.PodCIDRs = prefixes("198.18.1.0/24", "2001:db8:42:1::/64")
	service := []netip.Addr{netip.MustParseAddr("198.19.0.80")}
	for _, c := range []struct {
		title string
		now   nodeView
		err   error // of reading the nodes
		bad   error // of the last look
		port  *flows.ServicePort
		want  bool
	}{
		{title: "nothing changed", now: nodeView{self: self}, want: true},
		{title: "a peer inside the cluster CIDR", now: nodeView{self: self, peers: peers("198.18.2.0/24")}, want: true},
		{title: "an address of a peer", now: nodeView{self: self, peers: map[string]flows.Node{"node-2": {Name: "node-2", Addresses: moved.Addresses}}}},
		{title: "a peer beyond the cluster CIDR needs a route", now: nodeView{self: self, peers: peers("203.0.113.0/24")}},
		{title: "another InternalIP", now: nodeView{self: moved}},
		{title: "another podCIDR", now: nodeView{self: wider}},
		{title: "a Service inside", port: &flows.ServicePort{Protocol: "tcp", ClusterIPs: service, Port: 80}, now: nodeView{self: self}, want: true},
		{title: "a Service without endpoints, by UDP", port: &flows.ServicePort{Protocol: "udp", ClusterIPs: service, Port: 53}, now: nodeView{self: self}},
		{title: "a node port", port: &flows.ServicePort{Protocol: "tcp", ClusterIPs: service, Port: 80, NodePort: 30080}, now: nodeView{self: self}},
		{title: "an external address", port: &flows.ServicePort{Protocol: "tcp", ClusterIPs: service, Port: 80, External: []netip.Addr{netip.MustParseAddr("203.0.113.7")}}, now: nodeView{self: self}},
		{title: "no Node", err: errors.New("no Node object")},
		{title: "a failure before", now: nodeView{self: self}, bad: errors.New("no link twill0")},
	} {
		now, err := nodeView{self: self}, error(nil)
		services := flows.NewServices(nil, prefixes("198.19.0.0/16"))
		p := newPlumbing(&plumbing{
			set: settings{clusterCIDRs: prefixes("198.18.0.0/16")}, passed: true,
			nodes:    func() (nodeView, error) { return now, err },
			services: func() *flows.Services { return services },
		})
		p.asked = p.ask(now)
		if c.port != nil {
			services = flows.NewServices([]*flows.ServicePort{c.port}, services.CIDRs)
		}
		now, err, p.failure = c.now, c.err, c.bad
		if got := p.unchanged(); got != c.want {
			t.Errorf("%s: unchanged() = %v", c.title, got)
		}
	}
	before := newPlumbing(&plumbing{nodes: func() (nodeView, error) { return nodeView{}, nil }})
	if before.unchanged() {
		t.Error("nothing has been looked at, and nothing is to be done")
	}
}

func TestWhatObjectsAskForIsNoRepair(t *testing.T) {
	log, hook := test.NewNullLogger()
	self := flows.Node{Name: "node-1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.1.0/24")}}
	services := flows.NewServices(nil, nil)
	p := newPlumbing(&plumbing{
		passed: true, log: log, meter: newMetrics(), done: func(string) {},
		nodes:    func() (nodeView, error) { return nodeView{self: self}, nil },
		services: func() *flows.Services { return services },
	})
	p.asked = p.ask(nodeView{self: self})
	look := func(context.Context) ([]string, error) { return []string{"node ports"}, nil }
	level := func() logrus.Level {
		t.Helper()
		if err := p.pass(t.Context(), "test", look, p.asksElse()); err != nil {
			t.Fatal(err)
		}
		return hook.LastEntry().Level
	}
	if got := level(); got != logrus.WarnLevel {
		t.Errorf("somebody else's change is logged as %v, want a warning", got)
	}
	services = flows.NewServices([]*flows.ServicePort{{Protocol: "tcp", ClusterIPs: []netip.Addr{netip.MustParseAddr("198.19.0.80")}, Port: 80, NodePort: 30080}}, nil)
	if got := level(); got != logrus.InfoLevel {
		t.Errorf("a Service's change is logged as %v, want info", got)
	}
}
