package flows_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

// endpoints reads "ADDRESS NODE CONDITIONS HINTS": r ready, s serving, t terminating; z=ZONE, n=NODE.
func endpoints(lines ...string) (out []flows.Endpoint) {
	for _, l := range lines {
		w := strings.Fields(l)
		e := flows.Endpoint{Address: netip.MustParseAddr(w[0]), Port: 8080, Node: w[1],
			Ready: strings.Contains(w[2], "r"), Serving: strings.Contains(w[2], "s"), Terminating: strings.Contains(w[2], "t")}
		for _, h := range w[3:] {
			if z, ok := strings.CutPrefix(h, "z="); ok {
				e.ForZones = append(e.ForZones, z)
			}
			if n, ok := strings.CutPrefix(h, "n="); ok {
				e.ForNodes = append(e.ForNodes, n)
			}
		}
		out = append(out, e)
	}
	return flows.SortEndpoints(out)
}

func TestWhichEndpointsANodeUses(t *testing.T) {
	alpha := flows.Node{Name: "alpha", Zone: "east"}
	for _, c := range []struct {
		name           string
		endpoints      []flows.Endpoint
		cluster, local string
	}{
		{"the ready ones", endpoints("198.18.1.2 alpha rs", "198.18.2.2 beta rs", "198.18.2.3 beta -"), "198.18.1.2 198.18.2.2", "198.18.1.2"},
		{"terminating ones not beside ready ones", endpoints("198.18.1.2 alpha st", "198.18.2.2 beta rs"), "198.18.2.2", "198.18.1.2"},
		{"terminating ones that serve, where none is ready", endpoints("198.18.1.2 alpha st", "198.18.2.2 beta t"), "198.18.1.2", "198.18.1.2"},
		{"those of the zone", endpoints("198.18.1.2 alpha rs z=east", "198.18.2.2 beta rs z=west"), "198.18.1.2", "198.18.1.2"},
		{"all, if one has no hint", endpoints("198.18.1.2 alpha rs z=east", "198.18.2.2 beta rs"), "198.18.1.2 198.18.2.2", "198.18.1.2"},
		{"all, if none is for the zone", endpoints("198.18.2.1 beta rs z=west", "198.18.2.2 beta rs z=west"), "198.18.2.1 198.18.2.2", ""},
		{"those for the node before those of the zone", endpoints("198.18.1.2 alpha rs z=east n=alpha", "198.18.2.2 beta rs z=east n=beta"), "198.18.1.2", "198.18.1.2"},
		{"the other family is another matter", endpoints("2001:db8:1:1::2 alpha rs"), "", ""},
	} {
		p := &flows.ServicePort{Endpoints: c.endpoints}
		cluster, local := p.Choose(alpha, true)
		if g := addresses(cluster); g != c.cluster {
			t.Errorf("%s: cluster-wide %q, want %q", c.name, g, c.cluster)
		}
		if g := addresses(local); g != c.local {
			t.Errorf("%s: local %q, want %q", c.name, g, c.local)
		}
	}
}

func addresses(list []flows.Endpoint) string {
	var out []string
	for _, e := range list {
		out = append(out, e.Address.String())
	}
	return strings.Join(out, " ")
}

func udp(endpoints []flows.Endpoint, protocol string) *flows.Services {
	return flows.NewServices([]*flows.ServicePort{{
		Owner: "service/default/dns:dns/udp", Protocol: protocol, Port: 53, ClusterIPs: []netip.Addr{netip.MustParseAddr("198.19.0.53")}, Endpoints: endpoints,
	}}, nil)
}

func TestGroupNumbersDependOnTheSetOfServicesAlone(t *testing.T) {
	ports := func(n int) (out []*flows.ServicePort) {
		for i := range n {
			out = append(out, &flows.ServicePort{Owner: flows.Owner(fmt.Sprintf("service/default/s%d:80", i)), Protocol: "tcp", Port: 80,
				ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})}, Endpoints: endpoints("198.18.1.2 alpha rs")})
		}
		return out
	}
	compiled := func(list []*flows.ServicePort) map[flows.GroupID]string {
		w := readScenario(t, "testdata/three-ipv4.txtar").world
		w.Services = flows.NewServices(list, nil)
		out := map[flows.GroupID]string{}
		for _, g := range desired(t, w).Groups() {
			out[g.ID] = g.String()
		}
		return out
	}
	list := ports(300)
	first := compiled(list)
	backward := ports(300)
	slices.Reverse(backward)
	if len(first) != 300 {
		t.Fatalf("%d groups for 300 Services", len(first))
	}
	for id, text := range compiled(backward) {
		if first[id] != text {
			t.Fatalf("group %d is %q in one order and %q in the other", id, first[id], text)
		}
	}
}

func TestLargeServicesAreDividedAmongGroupsThatFitAMessage(t *testing.T) {
	var list []flows.Endpoint
	for i := range 5000 {
		list = append(list, flows.Endpoint{Address: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Port: 8080, Node: "beta", Ready: true, Serving: true})
	}
	w := readScenario(t, "testdata/three-ipv4.txtar").world
	w.Services = udp(list, "udp")
	d := desired(t, w)
	seen, outer := 0, 0
	for _, g := range d.Groups() {
		if len(g.Parts) > 0 {
			outer++
			continue
		}
		if len(g.Buckets) > 110 {
			t.Errorf("a group of %d buckets", len(g.Buckets))
		}
		seen += len(g.Buckets)
	}
	if outer != 1 || seen < 5000 {
		t.Errorf("%d outer groups, %d buckets; want 1 and 5,000", outer, seen)
	}
	first := d.Diff(nil)
	d.DiffGroups(nil, &first)
	if text := first.Bundle(); strings.Index(text, "group add_or_mod") > strings.Index(text, "flow add") {
		t.Error("groups have to stand before the flows that lead to them")
	}
}
