package services

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// askBriefly is ask for one in a row of packets: the answer to one that met the change may never come.
func askBriefly(c net.Conn) (answer, error) {
	done := time.AfterFunc(100*time.Millisecond, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer done.Stop()
	return ask(c)
}

// TestPacketsLeaveAnEndpointThatIsGone: a UDP client that never pauses would keep its tracked connection, and with it an
// endpoint that is gone, for ever (Kubernetes' documentation of kube-proxy calls such entries stale). A TCP connection goes on while
// the pod lives, though it is no endpoint any more, and is reset once it is gone. Clients of
// other endpoints and those that talk to the pod itself notice nothing.
func TestPacketsLeaveAnEndpointThatIsGone(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "old@node-2", "new@node-2")
	client, old, fresh := pods["client"], pods["old"], pods["new"]
	s := service{name: "dns", ips: []string{"198.19.0.53", "2001:db8:1919::35"}, port: 53, target: 5353, endpoints: []lab.Pod{old}}
	for _, p := range []lab.Pod{old, fresh} {
		serve(t, p.NetNS, p.Name, s.target)
	}
	labtest.Apply(t, l, s.String())

	type talker struct {
		what, wants string
		conn        net.Conn
	}
	var all []talker
	open := func(what, network string, to netip.AddrPort, wants string) {
		t.Helper()
		c, err := dial(client.NetNS, network, to, 0)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Cleanup(func() { c.Close() })
		if a, err := ask(c); err != nil || a.server != old.Name {
			t.Fatalf("%s, before: %v, %v; want an answer of %s", what, a, err, old.Name)
		}
		all = append(all, talker{what, wants, c})
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		ready(t, client.NetNS, s.vip(family))
		open(family+", UDP by the ClusterIP", "udp", s.vip(family), fresh.Name)
		open(family+", UDP to the pod itself", "udp", netip.AddrPortFrom(labtest.Of(family, old.Addresses), s.target), old.Name)
		open(family+", TCP to the pod itself", "tcp", netip.AddrPortFrom(labtest.Of(family, old.Addresses), s.target), old.Name)
		open(family+", TCP by the ClusterIP", "tcp", s.vip(family), old.Name)
	}

	s.endpoints = []lab.Pod{fresh}
	labtest.Apply(t, l, s.String())
	changed := time.Now()
	for _, x := range all {
		if x.wants == fresh.Name {
			took := time.Duration(0)
			labtest.Eventually(t, 5*patience, x.what+" has to reach "+x.wants, func() error {
				a, err := askBriefly(x.conn)
				if took = time.Since(changed); err != nil || a.server != x.wants {
					return fmt.Errorf("%v, %v", a, err)
				}
				return nil
			})
			t.Logf("%s: moved after %s", x.what, took.Round(time.Millisecond))
		}
	}
	check := func(when string) {
		t.Helper()
		for _, x := range all {
			if x.wants == old.Name {
				if a, err := ask(x.conn); err != nil || a.server != old.Name {
					t.Errorf("%s, %s: %v, %v; want %s as before", x.what, when, a, err, x.wants)
				}
			}
		}
	}
	check("while its pod lives")
	lingers := func() string {
		return labtest.OnNode(t, l, "node-1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-twill", "table=76,ip,nw_src="+labtest.Of("IPv4", old.Addresses).String())
	}
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	check("after a restart of the agent")
	if !strings.Contains(lingers(), "ct(") {
		t.Errorf("answers of %s are not translated any more", old.Name)
	}

	if err := l.RemovePod(t.Context(), old.String()); err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		if !strings.Contains(x.what, "TCP by the ClusterIP") {
			continue
		}
		// Its endpoint is gone, so a connection has to end with an error that is no time-out.
		var last error
		labtest.Eventually(t, 5*patience, x.what+" has to be reset", func() error {
			if _, last = askBriefly(x.conn); last == nil || errors.Is(last, os.ErrDeadlineExceeded) {
				return fmt.Errorf("it is not: %v", last)
			}
			return nil
		})
		if !strings.Contains(last.Error(), "reset") {
			t.Errorf("%s: %v, want a reset", x.what, last)
		}
	}
	labtest.Eventually(t, 5*patience, "nothing lingers", func() error {
		if s := lingers(); strings.Contains(s, "ct(") {
			return fmt.Errorf("still there: %s", s)
		}
		return nil
	})
}
