package services

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// service is a Service with its EndpointSlices, to be written as manifests.
type service struct {
	name      string
	ips       []string // clusterIPs
	port      uint16
	target    uint16
	nodePort  uint16
	spec      string // more lines of the spec, indented by two
	status    string // of the load balancer
	endpoints []lab.Pod
	// leaving are endpoints, by name, that terminate and still serve.
	leaving map[string]bool
	// hosts are endpoints that are nodes, by name.
	hosts map[string][]netip.Addr
}

func (s service) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\nspec:\n", s.name)
	fmt.Fprintf(&b, "  clusterIPs: [%q", s.ips[0])
	for _, ip := range s.ips[1:] {
		fmt.Fprintf(&b, ", %q", ip)
	}
	b.WriteString("]\n")
	node := ""
	if s.nodePort != 0 {
		node = fmt.Sprintf(", nodePort: %d", s.nodePort)
	}
	fmt.Fprintf(&b, "  ports:\n  - {name: tcp, port: %d, protocol: TCP%s}\n  - {name: udp, port: %[1]d, protocol: UDP%[2]s}\n%s\n", s.port, node, s.spec)
	if s.status != "" {
		fmt.Fprintf(&b, "status: {loadBalancer: {ingress: %s}}\n", s.status)
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-%s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}\n",
			s.name, strings.ToLower(family))
		fmt.Fprintf(&b, "addressType: %s\nports: [{name: tcp, port: %d, protocol: TCP}, {name: udp, port: %[2]d, protocol: UDP}]\nendpoints:", family, s.target)
		if len(s.endpoints)+len(s.hosts) == 0 {
			b.WriteString(" []")
		}
		b.WriteString("\n")
		for _, p := range s.endpoints {
			conditions := ""
			if s.leaving[p.Name] {
				conditions = ", conditions: {ready: false, serving: true, terminating: true}"
			}
			fmt.Fprintf(&b, "- {addresses: [%q], nodeName: %s%s}\n", labtest.Of(family, p.Addresses), p.Node, conditions)
		}
		for node, addresses := range s.hosts {
			fmt.Fprintf(&b, "- {addresses: [%q], nodeName: %s}\n", labtest.Of(family, addresses), node)
		}
	}
	return b.String()
}

// vip is the cluster IP of a family.
func (s service) vip(family string) netip.AddrPort {
	for _, ip := range s.ips {
		if a := netip.MustParseAddr(ip); labtest.FamilyOf(a) == family {
			return netip.AddrPortFrom(a, s.port)
		}
	}
	return netip.AddrPort{}
}

// ready waits until a client gets an answer.
func ready(t *testing.T, ns string, at netip.AddrPort) {
	t.Helper()
	labtest.Eventually(t, 5*patience, "an answer from "+at.String(), func() error { _, err := talk(ns, "tcp", at); return err })
}

func TestAPodReachesEveryEndpointByTheClusterIP(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "near@node-1", "far@node-2")
	s := service{name: "web", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080,
		endpoints: []lab.Pod{pods["near"], pods["far"]}}
	for _, p := range s.endpoints {
		serve(t, p.NetNS, p.Name, s.target)
	}
	labtest.Apply(t, l, s.String())
	client := pods["client"]
	for _, family := range []string{"IPv4", "IPv6"} {
		ready(t, client.NetNS, s.vip(family))
		for _, network := range []string{"tcp", "udp"} {
			got := map[string]int{}
			for range 60 {
				a, err := talk(client.NetNS, network, s.vip(family))
				if err != nil {
					t.Fatalf("%s %s: %v", family, network, err)
				}
				if want := labtest.Of(family, client.Addresses); a.seen.Addr() != want {
					t.Fatalf("%s %s: %s saw %s, want the client's own address %s", family, network, a.server, a.seen, want)
				}
				got[a.server]++
			}
			// Three sigma of 60 draws between two: 3 √(60 · ½ · ½) = 11.6.
			if got["near"] < 18 || got["far"] < 18 {
				t.Errorf("%s %s: 60 connections went to %v, want 30 each give or take 12", family, network, got)
			}
		}
	}
}
