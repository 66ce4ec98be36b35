package services

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestNodePortsAreServedAtTheAddressesThatWereChosen: a range of one family leaves the other as it is.
func TestNodePortsAreServedAtTheAddressesThatWereChosen(t *testing.T) {
	t.Setenv("TWILL_NODEPORT_ADDRESSES", "198.18.0.0/15") // of the node, the gateway of its podCIDR alone
	l := labtest.Up(t, lab.Options{Nodes: 1})
	pods := addPods(t, l, "near@node-1")
	serve(t, pods["near"].NetNS, "near", 8080)
	s := service{name: "web", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, nodePort: 30080, endpoints: []lab.Pod{pods["near"]}}
	labtest.Apply(t, l, s.String())
	n := labtest.Node(t, l, "node-1")
	host := labtest.NodeNS(t, l, "node-1")
	chosen := []netip.Addr{n.PodCIDRs()[0].Addr().Next(), n.PodCIDRs()[1].Addr().Next(), labtest.Of("IPv6", n.Addresses())}
	for _, a := range chosen {
		ready(t, host, netip.AddrPortFrom(a, s.nodePort))
	}
	if labtest.FamilyOf(chosen[0]) != "IPv4" {
		t.Fatalf("the first podCIDR is %s", n.PodCIDRs()[0])
	}
	other := netip.AddrPortFrom(labtest.Of("IPv4", n.Addresses()), s.nodePort)
	for who, ns := range map[string]string{"a process of the node": host, "the host outside": labtest.OutsideNS(l)} {
		for _, network := range []string{"tcp", "udp"} {
			if a, err := talkWithin(ns, network, other, shortly); err == nil || !refused(err) {
				t.Errorf("%s, %s to %s: %s, want refused", who, network, other, fmt.Sprint(a, err))
			}
		}
	}
}
