package policies

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestWhatAPodHasOnItsWayWhenItsFlowsGoIsBlocked takes a pod's flows away while the datapath still knows what to do first
// with its packets, as for a moment after each DEL: what comes back from conntrack finds tables without the pod. It holds
// that moment: no agent repairs, no revalidator looks at datapath flows, and the second of the two is deleted.
func TestWhatAPodHasOnItsWayWhenItsFlowsGoIsBlocked(t *testing.T) {
	l := up(t, 1)
	server, err := l.AddPod(t.Context(), lab.Pod{Namespace: "shop", Name: "server"})
	if err != nil {
		t.Fatal(err)
	}
	to := labtest.Of("IPv4", server.Addresses)
	u, err := within(server.NetNS, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":7") })
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	defer labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: silent}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
`)()
	p, err := l.AddPod(t.Context(), lab.Pod{Namespace: "shop", Name: "client", Labels: map[string]string{"app": "client"}})
	if err != nil {
		t.Fatal(err)
	}
	ovs := func(args ...string) string { return labtest.OnNode(t, l, "node-1", args...) }
	say := func(word string) {
		t.Helper()
		if _, err := within(p.NetNS, func() (int, error) { return send(to, word) }); err != nil {
			t.Fatal(err)
		}
	}
	second := regexp.MustCompile(`ufid:([0-9a-f-]+),.*recirc_id\(0x[0-9a-f]+\).*eth_type\(0x0800\).*actions:drop`)
	var found []string
	labtest.Eventually(t, 10*time.Second, "the datapath knows both parts of the packet's way", func() error {
		say("before")
		for line := range strings.Lines(ovs("ovs-appctl", "dpctl/dump-flows", "-m")) {
			if m := second.FindStringSubmatch(line); m != nil {
				found = append(found, m[1])
			}
		}
		if len(found) == 0 {
			return errors.New("no datapath flow drops what came back from conntrack")
		}
		return nil
	})

	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	ovs("ovs-appctl", "revalidator/pause")
	defer ovs("ovs-appctl", "revalidator/resume")
	ovs("ovs-ofctl", "-O", "OpenFlow15", "del-flows", "br-twill",
		fmt.Sprintf("cookie=%#x/%#x", flows.PodOwner("shop", "client", "eth0").CookiePrefix(), uint64(flows.CookieMask)))
	for _, ufid := range found {
		ovs("ovs-appctl", "dpctl/del-flow", "ufid:"+ufid)
	}
	gone := regexp.MustCompile(`n_packets=[1-9].*reg5=0x80000000/0x80000000 actions=drop`)
	say("after")
	labtest.Eventually(t, 10*time.Second, "the packet was dropped, or arrived", func() error {
		if gone.MatchString(ovs("ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-twill", fmt.Sprintf("table=%d", flows.Sender))) {
			return nil
		}
		if err := u.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		b := make([]byte, 64)
		if n, _, err := u.ReadFrom(b); err == nil {
			t.Fatalf("%q arrived", b[:n])
		}
		return errors.New("neither")
	})
}
