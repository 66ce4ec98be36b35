package packets

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestDropsShowThePacketsThatWereDropped lets a pod send what is dropped, and finds each packet with its addresses and ports
// below the reason, while it lasts: the datapath forgets in ten seconds.
func TestDropsShowThePacketsThatWereDropped(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 1, Config: lab.Config{IPFamily: "ipv4"}})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-1")
	a, b := labtest.Of("IPv4", pods[0].Addresses), labtest.Of("IPv4", pods[1].Addresses)
	node := labtest.Node(t, l, "node-1").Addresses()[0]
	mustPing(t, l, pods[0], pods[1]) // which is not dropped
	for _, c := range []struct {
		what, send, reason, owner, protocol string
		from, to                            netip.Addr
		port                                uint16
	}{
		{"another's address", "ip address add 203.0.113.77/32 dev lo; ping -c1 -W1 -I 203.0.113.77 " + b.String(), "spoofed", "pod/default/a", "icmp", netip.MustParseAddr("203.0.113.77"), b, 0},
		{"to a pod that is not there", "timeout 1 bash -c 'exec 3<>/dev/tcp/198.18.1.77/8080'", "no-such-pod", "node/node-1", "tcp", a, netip.MustParseAddr("198.18.1.77"), 8080},
		{"to a node that is not there", "exec 3>/dev/udp/198.18.99.1/53; echo who >&3", "no-such-node", "pipeline", "udp", a, netip.MustParseAddr("198.18.99.1"), 53},
		{"a tunnel packet", fmt.Sprintf("exec 3>/dev/udp/%s/6081; echo forged >&3", node), "tunnel-injection", "pipeline", "udp", a, node, 6081},
	} {
		eventually(t, patience(), c.what, func() string {
			podExec(t, l, pods[0], "bash", "-c", c.send) // what it says to that does not matter
			out, err := l.NodeExec(t.Context(), "node-1", "twill", "drops", "-o", "json")
			var list []inspect.Drop
			if err != nil || json.Unmarshal([]byte(out.Stdout), &list) != nil {
				return fmt.Sprintf("%v: %s%s", err, out.Stdout, out.Stderr)
			}
			for _, d := range list {
				for _, x := range d.Last {
					left := l.Datapath == "system" // what no flow looked at, the kernel's datapath does not tell
					if string(d.Reason) == c.reason && string(d.Owner) == c.owner && x.From == "pod default/a" &&
						(x.Protocol == c.protocol || left && x.Protocol == "any") && (x.DestinationPort == c.port || left && x.DestinationPort == 0) &&
						tells(x.Source, c.from, left) && tells(x.Destination, c.to, left) {
						return ""
					}
				}
			}
			return fmt.Sprintf("no %s from %s to %s port %d, %s of %s, among %s", c.protocol, c.from, c.to, c.port, c.reason, c.owner, out.Stdout)
		})
	}
	out, err := l.NodeExec(t.Context(), "node-1", "twill", "drops")
	if err != nil || out.Code != 0 || !strings.Contains(out.Stdout, "from pod default/a") {
		t.Errorf("as text: %v %s%s", err, out.Stdout, out.Stderr)
	}
}

// tells is true for the address itself and, where addresses may be left out, for a range that has it.
func tells(text string, a netip.Addr, left bool) bool {
	if p, err := netip.ParsePrefix(text); err == nil && left {
		return p.Contains(a)
	}
	return text == a.String() || left && text == "any"
}
