package services

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// matrix says who answers and whom it sees, for endpoints near on node-1 and far on node-2. "masquerade of node-1" is the
// network's own address in the podCIDR of node-1: the client got it because the answer would not come
// back by the node that knows the Service otherwise.
//
// From Kubernetes' documentation of Services ("Traffic policies", "Source IP for Services"): with Cluster every
// endpoint answers, and a node port may hide the client; with Local only endpoints of the node that the packet came
// to answer, clients outside keep their address, and pods and processes of a node reach an external address
// as with Cluster.
const matrix = `
pod on node-1 → ClusterIP, Cluster: far sees pod on node-1; near sees pod on node-1
pod on node-1 → ClusterIP, Local: near sees pod on node-1
pod on node-1 → node port of node-1, Cluster: far sees masquerade of node-1; near sees masquerade of node-1
pod on node-1 → node port of node-1, Local: near sees masquerade of node-1
pod on node-1 → load balancer, Cluster: far sees pod on node-1; near sees pod on node-1
pod on node-1 → load balancer, Local: far sees pod on node-1; near sees pod on node-1
pod on node-1 → external address, Cluster: far sees pod on node-1; near sees pod on node-1
pod on node-1 → external address, Local: far sees pod on node-1; near sees pod on node-1
endpoint near → ClusterIP, Cluster: far sees near; near sees masquerade of node-1
endpoint near → ClusterIP, Local: near sees masquerade of node-1
endpoint near → node port of node-1, Cluster: far sees masquerade of node-1; near sees masquerade of node-1
endpoint near → node port of node-1, Local: near sees masquerade of node-1
endpoint near → load balancer, Cluster: far sees near; near sees masquerade of node-1
endpoint near → load balancer, Local: far sees near; near sees masquerade of node-1
endpoint near → external address, Cluster: far sees near; near sees masquerade of node-1
endpoint near → external address, Local: far sees near; near sees masquerade of node-1
pod on node-3 → ClusterIP, Cluster: far sees pod on node-3; near sees pod on node-3
pod on node-3 → ClusterIP, Local: nobody
pod on node-3 → node port of node-1, Cluster: far sees masquerade of node-1; near sees masquerade of node-1
pod on node-3 → node port of node-1, Local: near sees masquerade of node-1
pod on node-3 → load balancer, Cluster: far sees pod on node-3; near sees pod on node-3
pod on node-3 → load balancer, Local: far sees pod on node-3; near sees pod on node-3
pod on node-3 → external address, Cluster: far sees pod on node-3; near sees pod on node-3
pod on node-3 → external address, Local: far sees pod on node-3; near sees pod on node-3
process of node-1 → ClusterIP, Cluster: far sees gateway of node-1; near sees gateway of node-1
process of node-1 → ClusterIP, Local: near sees gateway of node-1
process of node-1 → node port of node-1, Cluster: far sees node-1; near sees node-1
process of node-1 → node port of node-1, Local: far sees node-1; near sees node-1
process of node-1 → load balancer, Cluster: far sees gateway of node-1; near sees gateway of node-1
process of node-1 → load balancer, Local: far sees gateway of node-1; near sees gateway of node-1
process of node-1 → external address, Cluster: far sees gateway of node-1; near sees gateway of node-1
process of node-1 → external address, Local: far sees gateway of node-1; near sees gateway of node-1
process of node-3 → ClusterIP, Cluster: far sees gateway of node-3; near sees gateway of node-3
process of node-3 → ClusterIP, Local: nobody
process of node-3 → node port of node-1, Cluster: far sees masquerade of node-1; near sees node-3
process of node-3 → node port of node-1, Local: near sees node-3
process of node-3 → load balancer, Cluster: far sees gateway of node-3; near sees gateway of node-3
process of node-3 → load balancer, Local: far sees gateway of node-3; near sees gateway of node-3
process of node-3 → external address, Cluster: far sees gateway of node-3; near sees gateway of node-3
process of node-3 → external address, Local: far sees gateway of node-3; near sees gateway of node-3
host outside → node port of node-1, Cluster: far sees masquerade of node-1; near sees host outside
host outside → node port of node-1, Local: near sees host outside
host outside → load balancer, Cluster: far sees masquerade of node-1; near sees host outside
host outside → load balancer, Local: near sees host outside
host outside → external address, Cluster: far sees masquerade of node-1; near sees host outside
host outside → external address, Local: near sees host outside
`

func TestWhoAnswersAndWhomItSees(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 3})
	pods := addPods(t, l, "client@node-1", "third@node-3", "near@node-1", "far@node-2")
	endpoints := []lab.Pod{pods["near"], pods["far"]}
	for _, p := range endpoints {
		serve(t, p.NetNS, p.Name, 8080)
	}
	const local = "  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local\n"
	spec := func(ips string) string { return "  type: LoadBalancer\n  externalIPs: [" + ips + "]\n" }
	both := map[string]service{
		"Cluster": {name: "all", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, nodePort: 30080, endpoints: endpoints,
			spec: spec(`198.19.9.1, "2001:db8:ee::1"`), status: `[{ip: 198.19.9.2}, {ip: "2001:db8:ee::2"}]`},
		"Local": {name: "local", ips: []string{"198.19.0.11", "2001:db8:1919::b"}, port: 80, target: 8080, nodePort: 30081, endpoints: endpoints,
			spec: spec(`198.19.9.3, "2001:db8:ee::3"`) + local, status: `[{ip: 198.19.9.4}, {ip: "2001:db8:ee::4"}]`},
	}
	labtest.Apply(t, l, both["Cluster"].String()+"---\n"+both["Local"].String())
	n1, n3 := labtest.Node(t, l, "node-1"), labtest.Node(t, l, "node-3")
	for _, family := range []string{"IPv4", "IPv6"} {
		flag := map[string]string{"IPv4": "-4", "IPv6": "-6"}[family]
		for _, range_ := range map[string][]string{"IPv4": {"198.19.9.0/24"}, "IPv6": {"2001:db8:ee::/64"}}[family] {
			if out, err := l.OutsideExec(t.Context(), "ip", flag, "route", "add", range_, "via", labtest.Of(family, n1.Addresses()).String()); err != nil || out.Code != 0 {
				t.Fatalf("route: %v %s", err, out.Stderr)
			}
		}
		for _, s := range both {
			ready(t, pods["client"].NetNS, s.vip(family))
			labtest.Eventually(t, 5*patience, "node port", func() error {
				_, err := talk(labtest.OutsideNS(l), "tcp", netip.AddrPortFrom(labtest.Of(family, n1.Addresses()), s.nodePort))
				return err
			})
			ready(t, labtest.NodeNS(t, l, "node-3"), netip.AddrPortFrom(external(s, family, 0), 80))
		}
		names := map[netip.Addr]string{}
		for name, p := range map[string]string{"client": "pod on node-1", "third": "pod on node-3", "near": "near"} {
			names[labtest.Of(family, pods[name].Addresses)] = p
		}
		for _, n := range []*lab.Node{n1, n3} {
			names[labtest.Of(family, n.Addresses())] = n.Name
			for _, c := range n.PodCIDRs() {
				names[c.Addr()], names[c.Addr().Next()] = "masquerade of "+n.Name, "gateway of "+n.Name
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			var got strings.Builder
			got.WriteString("\n")
			for _, c := range []struct{ name, ns string }{
				{"pod on node-1", pods["client"].NetNS}, {"endpoint near", pods["near"].NetNS}, {"pod on node-3", pods["third"].NetNS},
				{"process of node-1", labtest.NodeNS(t, l, "node-1")}, {"process of node-3", labtest.NodeNS(t, l, "node-3")}, {"host outside", labtest.OutsideNS(l)},
			} {
				for i, front := range []string{"ClusterIP", "node port of node-1", "load balancer", "external address"} {
					for _, policy := range []string{"Cluster", "Local"} {
						s := both[policy]
						at := s.vip(family)
						switch {
						case i == 0 && c.name == "host outside":
							continue
						case i == 1:
							at = netip.AddrPortFrom(labtest.Of(family, n1.Addresses()), s.nodePort)
						case i == 2:
							at = netip.AddrPortFrom(external(s, family, 1), 80)
						case i == 3:
							at = netip.AddrPortFrom(external(s, family, 0), 80)
						}
						fmt.Fprintf(&got, "%s → %s, %s: %s\n", c.name, front, policy, whoAnswers(c.ns, network, at, names))
					}
				}
			}
			if got.String() != matrix {
				t.Errorf("%s %s:%s", family, network, differences(matrix, got.String()))
			}
		}
	}
}

// external is the external address (0) or that of the load balancer (1) of a Service.
func external(s service, family string, which int) netip.Addr {
	text := []string{s.spec, s.status}[which]
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("[]{}, \"\n", r) }) {
		if a, err := netip.ParseAddr(word); err == nil && labtest.FamilyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}

// whoAnswers asks until both endpoints have answered, but not for ever, and says whom each saw.
func whoAnswers(ns, network string, at netip.AddrPort, names map[netip.Addr]string) string {
	seen := map[string]string{}
	for i := 0; i < 16 && len(seen) < 2; i++ {
		// That the other one never answers is a matter of 1 : 2¹⁶.
		a, err := talkWithin(ns, network, at, shortly)
		if err != nil {
			if len(seen) == 0 && i == 0 {
				return "nobody"
			}
			return err.Error()
		}
		name, ok := names[a.seen.Addr()]
		if !ok {
			name = "host outside"
		}
		if before, again := seen[a.server]; again && before != name {
			return fmt.Sprintf("%s sees %s and %s", a.server, before, name)
		}
		seen[a.server] = name
	}
	var out []string
	for _, server := range []string{"far", "near"} {
		if name, ok := seen[server]; ok {
			out = append(out, server+" sees "+name)
		}
	}
	return strings.Join(out, "; ")
}

func differences(want, got string) string {
	var b strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			fmt.Fprintf(&b, "\n  got  %s\n  want %s", at(g, i), at(w, i))
		}
	}
	return b.String()
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}
