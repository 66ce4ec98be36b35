package flows_test

import (
	"net/netip"
	"testing"

	"github.com/twill-net/twill/flows"
)

func TestWhatBecomesOfConnections(t *testing.T) {
	two := endpoints("198.18.1.2 alpha rs", "198.18.2.2 beta rs")
	leaving := endpoints("198.18.1.2 alpha rs", "198.18.2.2 beta st")
	down := endpoints("198.18.1.2 alpha rs", "198.18.2.2 beta t")
	one := endpoints("198.18.1.2 alpha rs")
	vip, beta := netip.MustParseAddrPort("198.19.0.53:53"), netip.MustParseAddrPort("198.18.2.2:8080")
	through := flows.Connection{Frontend: flows.Frontend{Protocol: "udp", At: vip}, Endpoint: beta}
	direct := flows.Connection{Frontend: flows.Frontend{Protocol: "udp", At: beta}, Endpoint: beta}
	moved := direct
	moved.Moved = true
	tcp := through
	tcp.Frontend.Protocol = "tcp"
	for _, c := range []struct {
		name           string
		services       *flows.Services
		connection     flows.Connection
		dead           bool
		ended, lingers bool
	}{
		{"an endpoint that is there", udp(two, "udp"), through, false, false, false},
		{"it terminates and serves", udp(leaving, "udp"), through, false, false, false},
		{"it terminates and does not serve", udp(down, "udp"), through, false, true, false},
		{"an endpoint that is gone", udp(one, "udp"), through, false, true, true},
		{"the protocol is another", udp(two, "tcp"), through, false, true, false},
		{"the Service is gone", flows.NewServices(nil, nil), through, false, true, true},
		{"TCP to one that terminates may finish", udp(down, "tcp"), tcp, false, false, false},
		{"TCP goes on while its pod lives", udp(one, "tcp"), tcp, false, false, true},
		{"TCP to a pod that is gone", udp(one, "tcp"), tcp, true, true, true},
		{"TCP whose Service is gone", flows.NewServices(nil, nil), tcp, false, true, true},
		{"straight to an endpoint", udp(two, "udp"), direct, false, false, false},
		{"straight to who is no endpoint", udp(one, "udp"), direct, true, false, false},
		{"straight, by another port", udp(one, "udp"), moved, true, false, true},
	} {
		w := readScenario(t, "testdata/three-ipv4.txtar").world
		w.Services = c.services
		x := flows.NewConnections(w)
		if got := x.Ended(c.connection, func(netip.Addr) bool { return !c.dead }); got != c.ended {
			t.Errorf("%s: ended is %v", c.name, got)
		}
		if got := x.Lingers(c.connection); got != c.lingers {
			t.Errorf("%s: lingers is %v", c.name, got)
		}
	}
}

func TestWhoLingersKeepsTheFlowsOfAnEndpoint(t *testing.T) {
	gone := netip.MustParseAddr("198.18.2.2")
	with := readScenario(t, "testdata/three-ipv4.txtar").world
	with.Services = udp(endpoints("198.18.1.2 alpha rs", "198.18.2.2 beta rs"), "udp")
	after := readScenario(t, "testdata/three-ipv4.txtar").world
	after.Services = udp(endpoints("198.18.1.2 alpha rs"), "udp")
	const owner = flows.Owner("endpoint-address/198.18.2.2")
	d := desired(t, with)
	n := len(d.Of(owner))
	after.Lingering = map[netip.Addr]bool{gone: true}
	for _, step := range []struct {
		what string
		want int
	}{{"an endpoint left and lingers", n}, {"nothing leads there any more", 0}} {
		wanted := map[flows.Owner][]flows.Flow{}
		for _, o := range flows.Changed(with, after) {
			fs, err := flows.Compile(after, o)
			if err != nil {
				t.Fatal(err)
			}
			wanted[o] = fs
		}
		if _, err := d.Replace(wanted); err != nil {
			t.Fatal(err)
		}
		if got := len(d.Of(owner)); got != step.want || n == 0 {
			t.Errorf("%s: %d flows, want %d", step.what, got, step.want)
		}
		next := *after
		next.Lingering = nil
		with, after = after, &next
	}
}
