package services

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestDatagramsThatNobodyAnswersAllArrive: one datagram after the other from one port, as a log or a metric is sent. To
// Open vSwitch such a connection stays a new one.
func TestDatagramsThatNobodyAnswersAllArrive(t *testing.T) {
	const count = 5
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "near@node-1", "client@node-1", "far@node-2")
	s := service{name: "log", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 514, target: 5140, nodePort: 30514, endpoints: []lab.Pod{pods["near"], pods["far"]}}
	heard := make(chan string, 1000)
	for _, p := range s.endpoints {
		serve(t, p.NetNS, p.Name, 5141) // which Services tells that flows are there
		listen(t, p.NetNS, 5140, heard)
	}
	probe := service{name: "probe", ips: []string{"198.19.0.11", "2001:db8:1919::b"}, port: 514, target: 5141, nodePort: 30515, endpoints: s.endpoints}
	labtest.Apply(t, l, s.String()+"---\n"+probe.String())
	node := labtest.Node(t, l, "node-1")
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, c := range []struct {
			name, ns string
			to, sign netip.AddrPort
		}{
			{"a pod", pods["client"].NetNS, s.vip(family), probe.vip(family)},
			{"a process of the node", labtest.NodeNS(t, l, "node-1"), s.vip(family), probe.vip(family)},
			{"the host outside, by a node port", labtest.OutsideNS(l), netip.AddrPortFrom(labtest.Of(family, node.Addresses()), s.nodePort),
				netip.AddrPortFrom(labtest.Of(family, node.Addresses()), probe.nodePort)},
		} {
			ready(t, c.ns, c.sign)
			for conversation := range 6 { // both endpoints, with near certainty
				if err := converse(c.ns, c.to, count, fmt.Sprintf("%s %s %d", family, c.name, conversation), heard); err != nil {
					t.Errorf("%s, %s: %v", family, c.name, err)
					break
				}
			}
		}
	}
}

// converse sends datagrams from one port, each once the one before has arrived: else nothing would be known yet of the
// connection.
func converse(ns string, to netip.AddrPort, count int, text string, heard <-chan string) error {
	conn, err := dial(ns, "udp", to, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := range count {
		want := fmt.Sprintf("%s.%d", text, i)
		if _, err := conn.Write([]byte(want)); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		select {
		case got := <-heard:
			if got != want {
				return fmt.Errorf("datagram %d: %q arrived, want %q", i, got, want)
			}
		case <-time.After(patience):
			return fmt.Errorf("datagram %d does not arrive", i)
		}
	}
	return nil
}

// listen hears datagrams at a port of a namespace and answers none.
func listen(t *testing.T, ns string, port int, heard chan<- string) {
	t.Helper()
	var u *net.UDPConn
	if err := lab.Inside(ns, func() (err error) {
		u, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	go func() {
		b := make([]byte, 128)
		for {
			n, _, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
}
