package services

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestBadObjectsAreNamedAndHarmNobodyElse: what cannot be used is named in an Event at its object, what is unusual but can be
// used (an endpoint outside of the cluster, a node as endpoint) is used and named, and a Service beside them works.
func TestBadObjectsAreNamedAndHarmNobodyElse(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "near@node-1")
	serve(t, pods["near"].NetNS, "near", 8080)
	serve(t, labtest.OutsideNS(l), "outside", 8080)
	serve(t, labtest.NodeNS(t, l, "node-2"), "node-2", 8080)
	good := service{name: "good", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, endpoints: []lab.Pod{pods["near"]}}
	external := service{name: "external", ips: []string{"198.19.0.11", "2001:db8:1919::b"}, port: 80, target: 8080,
		endpoints: []lab.Pod{{Name: "outside", Addresses: []netip.Addr{lab.Outside4(), lab.Outside6()}}}}
	node := service{name: "node", ips: []string{"198.19.0.12", "2001:db8:1919::c"}, port: 80, target: 8080,
		hosts: map[string][]netip.Addr{"node-2": labtest.Node(t, l, "node-2").Addresses()}}
	const bad = `---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: default}
spec:
  clusterIPs: ["198.19.0.13"]
  ports:
  - {name: zero, port: 0}
  - {name: one, port: 80}
  - {name: two, port: 80}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad-1, namespace: default, labels: {kubernetes.io/service-name: bad}}
addressType: IPv4
ports: [{name: one, port: 8080}, {name: two, port: 0}]
endpoints: [{addresses: ["2001:db8::7"]}, {addresses: ["%s"]}]
`
	near := labtest.Of("IPv4", pods["near"].Addresses)
	labtest.Apply(t, l, fmt.Sprintf(bad, near)+"---\n"+external.String()+"---\n"+node.String()+"---\n"+good.String())
	for _, family := range []string{"IPv4", "IPv6"} {
		for who, ns := range map[string]string{"a pod": pods["client"].NetNS, "a process of the node": labtest.NodeNS(t, l, "node-1")} {
			for _, c := range []struct {
				s      service
				server string
			}{{good, "near"}, {external, "outside"}, {node, "node-2"}} {
				ready(t, ns, c.s.vip(family))
				for _, network := range []string{"tcp", "udp"} {
					if network == "udp" && c.server != "near" {
						continue // who has several addresses answers from another one: serve listens at all of them
					}
					if a, err := talk(ns, network, c.s.vip(family)); err != nil || a.server != c.server {
						t.Errorf("%s, %s %s to %s: %v, %v; want %s", who, family, network, c.s.name, a, err, c.server)
					}
				}
			}
		}
	}
	// What can be used of the bad one is.
	ready(t, pods["client"].NetNS, netip.MustParseAddrPort("198.19.0.13:80"))

	for name, wants := range map[string][]string{
		"node-1": {
			"object=Service/default/bad reason=TwillNotUsed", "spec.ports[0].port 0 is not between 1 and 65535", "spec.ports[2] (two 80/tcp) has the number or the name of an earlier port",
			"object=EndpointSlice/default/bad-1 reason=TwillNotUsed", "ports[1].port 0 is not between 1 and 65535", "endpoints[0] has the address 2001:db8::7, but the slice is of type IPv4",
			"its endpoint 203.0.113.10:8080 is in no podCIDR and no node has it", "object=Service/default/external reason=TwillUnusualEndpoint",
		},
		"node-2": {"its endpoint 198.51.100.2:8080 is the node node-2 itself", "object=Service/default/node reason=TwillUnusualEndpoint"},
	} {
		data, err := os.ReadFile(labtest.Node(t, l, name).LogFile())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(data), want) {
				t.Errorf("no Event of %s says %q", name, want)
			}
		}
	}
}
