package services

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// ownMatrix says who answers at port 80 of addresses that a host has itself, for endpoints near on node-1 and far on
// node-2; "node-1" is an externalIP that is the address of node-1, "balancer" the address of a load balancer that
// something has put on a link of node-1, for clients of loadBalancerSourceRanges alone: pods, gateways and the host outside.
//
// From Kubernetes' documentation of Services ("External IPs"): traffic that comes into the cluster with the external IP as
// its destination, at the port of the Service, is routed to one of the endpoints; with Local, to those of the node it came to.
const ownMatrix = `
host outside → node-1, Cluster: far sees masquerade of node-1; near sees host outside
host outside → node-1, Local: near sees host outside
host outside → balancer: far sees masquerade of node-1; near sees host outside
process of node-1 → node-1, Cluster: far sees node-1; near sees node-1
process of node-1 → node-1, Local: far sees node-1; near sees node-1
process of node-1 → balancer: nobody
process of node-2 → node-1, Cluster: far sees masquerade of node-1; near sees node-2
process of node-2 → node-1, Local: near sees node-2
process of node-2 → balancer: far sees gateway of node-2; near sees gateway of node-2
pod on node-1 → node-1, Cluster: far sees pod on node-1; near sees pod on node-1
pod on node-1 → node-1, Local: far sees pod on node-1; near sees pod on node-1
pod on node-1 → balancer: far sees pod on node-1; near sees pod on node-1
pod on node-2 → node-1, Cluster: far sees pod on node-2; near sees pod on node-2
pod on node-2 → node-1, Local: far sees pod on node-2; near sees pod on node-2
pod on node-2 → balancer: far sees pod on node-2; near sees pod on node-2
`

// TestAServiceAtAnAddressOfTheHostIsServed: real packets to an externalIP that is a node's address, and to a load balancer's address on
// a link of the node; every other port and protocol of these addresses stays the host's, and all of them do once the
// Service is gone.
func TestAServiceAtAnAddressOfTheHostIsServed(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "third@node-2", "near@node-1", "far@node-2")
	endpoints := []lab.Pod{pods["near"], pods["far"]}
	for _, p := range endpoints {
		serve(t, p.NetNS, p.Name, 8080)
	}
	n1, n2 := labtest.Node(t, l, "node-1"), labtest.Node(t, l, "node-2")
	host, outside := labtest.NodeNS(t, l, "node-1"), labtest.OutsideNS(l)
	serveTCP(t, host, 81) // what the node serves itself, beside and below the Services
	serveTCP(t, host, 80)
	link := "br-phy"
	if l.Datapath != "netdev" {
		link = "eth0"
	}
	balancer := map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.200"), "IPv6": netip.MustParseAddr("2001:db8:100::c8")}
	moving := map[string]netip.Addr{"IPv4": netip.MustParseAddr("198.51.100.201"), "IPv6": netip.MustParseAddr("2001:db8:100::c9")}
	for _, a := range balancer {
		labtest.OnNode(t, l, "node-1", "ip", "address", "add", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", link)
		for _, ns := range []string{host, outside} {
			labtest.Eventually(t, 5*patience, "the node itself answers", func() error {
				_, err := talk(ns, "tcp", netip.AddrPortFrom(a, 80))
				return err
			})
		}
	}
	at := func(family string) netip.Addr { return labtest.Of(family, n1.Addresses()) }
	for family := range balancer {
		if a, err := talk(outside, "tcp", netip.AddrPortFrom(at(family), 80)); err != nil || a.server != "node-1" {
			t.Fatalf("before there is a Service: %v, %v", a, err)
		}
	}
	externals := fmt.Sprintf("  externalIPs: [%q, %q]\n", at("IPv4"), at("IPv6"))
	ranges := "  type: LoadBalancer\n  loadBalancerSourceRanges: [198.18.0.0/16, 198.51.100.254/32, \"2001:db8:42::/48\", \"2001:db8:100::fe/128\"]\n"
	cluster := service{name: "all", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, endpoints: endpoints, spec: externals}
	local := service{name: "all", ips: cluster.ips, port: 80, target: 8080, endpoints: endpoints, spec: externals + "  externalTrafficPolicy: Local\n"}
	balanced := service{name: "balanced", ips: []string{"198.19.0.11", "2001:db8:1919::b"}, port: 80, target: 8080, endpoints: endpoints, spec: ranges,
		status: fmt.Sprintf("[{ip: %q}, {ip: %q}, {ip: %q}, {ip: %q}]", balancer["IPv4"], balancer["IPv6"], moving["IPv4"], moving["IPv6"])}
	gone := labtest.Apply(t, l, balanced.String())
	got := map[string]*strings.Builder{}
	type client struct{ name, ns string }
	clients := []client{{"host outside", outside}, {"process of node-1", host}, {"process of node-2", labtest.NodeNS(t, l, "node-2")},
		{"pod on node-1", pods["client"].NetNS}, {"pod on node-2", pods["third"].NetNS}}
	lines := map[string]string{}
	for _, policy := range []string{"Cluster", "Local"} {
		s := map[string]service{"Cluster": cluster, "Local": local}[policy]
		labtest.Apply(t, l, s.String())
		for _, family := range []string{"IPv4", "IPv6"} {
			names := map[netip.Addr]string{}
			for name, p := range map[string]string{"client": "pod on node-1", "third": "pod on node-2", "near": "near"} {
				names[labtest.Of(family, pods[name].Addresses)] = p
			}
			for _, n := range []*lab.Node{n1, n2} {
				names[labtest.Of(family, n.Addresses())] = n.Name
				for _, c := range n.PodCIDRs() {
					names[c.Addr()], names[c.Addr().Next()] = "masquerade of "+n.Name, "gateway of "+n.Name
				}
			}
			for _, to := range []netip.Addr{at(family), balancer[family]} {
				labtest.Eventually(t, 5*patience, "the Service answers", func() error {
					a, err := talk(outside, "tcp", netip.AddrPortFrom(to, 80))
					if err == nil && a.server == "node-1" {
						err = fmt.Errorf("the node itself answers at %s", to)
					}
					return err
				})
			}
			if policy == "Local" { // whose answers tell that it has come
				labtest.Eventually(t, 5*patience, "far answers no more", func() error {
					if who := whoAnswers(outside, "tcp", netip.AddrPortFrom(at(family), 80), names); strings.Contains(who, "far") {
						return fmt.Errorf("%s", who)
					}
					return nil
				})
			}
			for _, network := range []string{"tcp", "udp"} {
				key := family + " " + network
				for _, c := range clients {
					lines[key+c.name+policy] = whoAnswers(c.ns, network, netip.AddrPortFrom(at(family), 80), names)
					if policy == "Cluster" {
						lines[key+c.name] = whoAnswers(c.ns, network, netip.AddrPortFrom(balancer[family], 80), names)
					}
				}
				if got[key] == nil {
					got[key] = &strings.Builder{}
				}
			}
		}
	}
	for key, b := range got {
		b.WriteString("\n")
		for _, c := range clients {
			for _, policy := range []string{"Cluster", "Local"} {
				fmt.Fprintf(b, "%s → node-1, %s: %s\n", c.name, policy, lines[key+c.name+policy])
			}
			fmt.Fprintf(b, "%s → balancer: %s\n", c.name, lines[key+c.name])
		}
		if b.String() != ownMatrix {
			t.Errorf("%s:%s", key, differences(ownMatrix, b.String()))
		}
	}

	for _, family := range []string{"IPv4", "IPv6"} {
		for _, to := range []netip.Addr{at(family), balancer[family]} {
			serveUDP(t, host, netip.AddrPortFrom(to, 81))
			for _, network := range []string{"tcp", "udp"} {
				for _, c := range clients {
					if strings.HasSuffix(c.name, "node-2") && to == balancer[family] {
						continue // node-2 does not know that it is a host's
					}
					if a, err := talk(c.ns, network, netip.AddrPortFrom(to, 81)); err != nil || a.server != "node-1" {
						t.Errorf("%s to the node's own %s port 81 at %s: %v, %v", c.name, network, to, a, err)
					}
				}
			}
		}
		// What the node begins by that address of its own comes back to it.
		for _, to := range []string{"near", "far"} {
			if a, err := talkFrom(host, at(family), netip.AddrPortFrom(labtest.Of(family, pods[to].Addresses), 8080)); err != nil || a.server != to {
				t.Errorf("from %s to pod %s: %v, %v", at(family), to, a, err)
			}
		}
	}
	labtest.OnNode(t, l, "node-1", "twill", "verify") // it fails where something differs
	why := labtest.OnNode(t, l, "node-1", "twill", "why", "host", at("IPv4").String(), "--source", "198.51.100.254", "--proto", "tcp", "--port", "80")
	if !strings.Contains(why, "allowed") || !strings.Contains(why, "service/default/all:tcp") {
		t.Error(why)
	}

	// Another Service at the same addresses, by another port.
	more := service{name: "more", ips: []string{"198.19.0.12", "2001:db8:1919::c"}, port: 82, target: 8080, endpoints: endpoints, spec: externals}
	labtest.Apply(t, l, more.String())
	for _, family := range []string{"IPv4", "IPv6"} {
		ready(t, outside, netip.AddrPortFrom(at(family), 82))
	}
	// An address that comes to the host while the Service is there, and leaves it, as keepalived has it.
	for family, a := range moving {
		text := fmt.Sprintf("%s/%d", a, a.BitLen())
		labtest.OnNode(t, l, "node-1", "ip", "address", "add", text, "dev", link)
		labtest.Eventually(t, 5*patience, "an address that has come is served", func() error {
			a, err := talk(outside, "tcp", netip.AddrPortFrom(a, 80))
			if err == nil && a.server == "node-1" {
				err = fmt.Errorf("the node itself answers")
			}
			return err
		})
		labtest.OnNode(t, l, "node-1", "ip", "address", "del", text, "dev", link)
		labtest.Eventually(t, 5*patience, "of an address that has left nothing is kept", func() error {
			rules := labtest.OnNode(t, l, "node-1", "nft", "list", "map", "inet", "twill", "own-services-"+strings.ToLower(family))
			flows := labtest.OnNode(t, l, "node-1", "twill", "flows", "--table", "conntrack")
			if !strings.Contains(rules, balancer[family].String()) || strings.Contains(rules, a.String()) || strings.Contains(flows, a.String()+" of this node") {
				return fmt.Errorf("%s%s", rules, flows)
			}
			return nil
		})
	}

	gone()
	for family, to := range balancer {
		labtest.Eventually(t, 5*patience, "the port is the node's again", func() error {
			a, err := talk(outside, "tcp", netip.AddrPortFrom(to, 80))
			if err == nil && a.server != "node-1" {
				err = fmt.Errorf("%s answers at %s (%s)", a.server, to, family)
			}
			return err
		})
	}
}

// serveTCP and serveUDP answer as a node's own processes do; UDP from the address that it was asked at.
func serveTCP(t *testing.T, ns string, port uint16) {
	t.Helper()
	var l net.Listener
	if err := lab.Inside(ns, func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go labtest.Accept(l, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 64)); err == nil {
			fmt.Fprintf(c, "node-1 %s", c.RemoteAddr())
		}
	})
}

func serveUDP(t *testing.T, ns string, at netip.AddrPort) {
	t.Helper()
	var u *net.UDPConn
	if err := lab.Inside(ns, func() (err error) { u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	go func() {
		for b := make([]byte, 64); ; {
			_, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "node-1 %s", from), from)
		}
	}()
}

// talkFrom is one connection from a given address.
func talkFrom(ns string, from netip.Addr, to netip.AddrPort) (a answer, err error) {
	var c net.Conn
	if err := lab.Inside(ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}).Dial("tcp", to.String())
		return err
	}); err != nil {
		return answer{}, err
	}
	defer c.Close()
	return ask(c)
}
