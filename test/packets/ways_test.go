package packets

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// ways is what a packet that somebody sends must come to: who the receiver sees it from.
const ways = `
pod a → pod b on the same node: from pod a
pod a → pod c on the other node: from pod a
pod a → itself: from pod a
pod a → the gateway of its node: from pod a
pod a → its node's address: from pod a
pod a → the other node's address: from pod a
pod a → the other node's gateway: from pod a
pod a → the host outside: from node-1
node-1 → its pod a: from the gateway of node-1
node-1 → pod c on the other node: from the gateway of node-1
node-2 → pod a on the other node: from the gateway of node-2
`

func TestWaysOfAPacket(t *testing.T) {
	for _, c := range []struct{ underlay, tunnel, family string }{
		{"IPv4", "geneve", "dual"},
		{"IPv4", "vxlan", "dual"},
		{"IPv6", "geneve", "dual"},
		{"IPv6", "vxlan", "ipv6"},
		{"IPv4", "geneve", "ipv4"},
	} {
		t.Run(fmt.Sprintf("%s over %s, pods %s", c.tunnel, c.underlay, c.family), func(t *testing.T) {
			l := upOver(t, c.underlay, lab.Options{Nodes: 2, Config: lab.Config{Tunnel: c.tunnel, IPFamily: c.family}})
			for _, family := range families(l) {
				if got := tryWays(t, l, family); got != ways {
					t.Errorf("%s: got%swant%s", family, got, ways)
				}
			}
			for _, n := range l.Nodes() {
				if got := statusOf(t, l, n.Name).Address; got.Is4() != (c.underlay == "IPv4") {
					t.Errorf("tunnels of %s end at %s, want the %s address", n.Name, got, c.underlay)
				}
			}
		})
	}
}

func TestDestinationsThatAreNotMasqueradedSeeThePodsAddress(t *testing.T) {
	t.Setenv("TWILL_NO_MASQUERADE_CIDR", "203.0.113.0/24,2001:db8:113::/64")
	l := labtest.Up(t, lab.Options{Nodes: 1})
	a := addPod(t, l, "a@node-1")
	outside := host{"the host outside", labtest.OutsideNS(l), []netip.Addr{lab.Outside4(), lab.Outside6()}}
	// The host outside knows the way back, as the router of such a network would.
	if err := lab.Inside(outside.netns, func() error {
		for _, c := range labtest.Node(t, l, "node-1").PodCIDRs() {
			via := labtest.Of(labtest.FamilyOf(c.Addr()), labtest.Node(t, l, "node-1").Addresses())
			if out, err := l.OutsideExec(t.Context(), "ip", "route", "add", c.String(), "via", via.String()); err != nil || out.Code != 0 {
				return fmt.Errorf("route: %v %s", err, out.Stderr)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, family := range families(l) {
		at := labtest.Of(family, outside.addresses)
		if got := trySend(host{"pod a", a.NetNS, a.Addresses}, outside, at); got != labtest.Of(family, a.Addresses).String() {
			t.Errorf("pod → outside without masquerade: seen from %s, want the pod's %s", got, labtest.Of(family, a.Addresses))
		}
	}
}

func TestTenMegabytesArriveUnchanged(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "a@node-1", "b@node-1", "c@node-2")
	for _, family := range families(l) {
		for _, to := range pods[1:] {
			if _, err := talkTCP(podHost(pods[0]), podHost(to), labtest.Of(family, to.Addresses), 10<<20); err != nil {
				t.Errorf("%s, pod a on node-1 to pod %s on %s: %v", family, to.Name, to.Node, err)
			}
		}
	}
}

// upOver builds a lab whose tunnels run over one family whatever the nodes have.
func upOver(t *testing.T, underlay string, o lab.Options) *lab.Lab {
	t.Helper()
	if underlay == "IPv4" || o.IPFamily == "ipv6" {
		return labtest.Up(t, o)
	}
	o = labtest.Prepare(t, o)
	o.NoAgent = true
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l.NoAgent = false
	t.Cleanup(func() { os.Unsetenv("TWILL_TUNNEL_ADDRESS") })
	for _, n := range l.Nodes() {
		t.Setenv("TWILL_TUNNEL_ADDRESS", labtest.Of(underlay, n.Addresses()).String())
		if err := l.StartAgent(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func podHost(p lab.Pod) host { return host{"pod " + p.Name, p.NetNS, p.Addresses} }

// gateways are the addresses of a node in its own podCIDRs.
func gateways(n *lab.Node) (all []netip.Addr) {
	for _, c := range n.PodCIDRs() {
		all = append(all, c.Addr().Next())
	}
	return all
}

// tryWays sends by TCP, UDP and, from pods, by ping, and says who was seen.
func tryWays(t *testing.T, l *lab.Lab, family string) string {
	t.Helper()
	var pods []lab.Pod
	for _, spec := range []string{"a@node-1", "b@node-1", "c@node-2"} {
		pods = append(pods, addPod(t, l, strings.ToLower(family)+spec))
	}
	a, b, c := podHost(pods[0]), podHost(pods[1]), podHost(pods[2])
	n1, n2 := labtest.Node(t, l, "node-1"), labtest.Node(t, l, "node-2")
	node1 := host{"node-1", labtest.NodeNS(t, l, "node-1"), n1.Addresses()}
	node2 := host{"node-2", labtest.NodeNS(t, l, "node-2"), n2.Addresses()}
	outside := host{"outside", labtest.OutsideNS(l), []netip.Addr{lab.Outside4(), lab.Outside6()}}
	names := map[string]string{
		labtest.Of(family, a.addresses).String():     "pod a",
		labtest.Of(family, node1.addresses).String(): "node-1",
		labtest.Of(family, node2.addresses).String(): "node-2",
		labtest.Of(family, gateways(n1)).String():    "the gateway of node-1",
		labtest.Of(family, gateways(n2)).String():    "the gateway of node-2",
	}
	var out strings.Builder
	out.WriteString("\n")
	for _, w := range []struct {
		title    string
		from, to host
		at       []netip.Addr
	}{
		{"pod a → pod b on the same node", a, b, b.addresses},
		{"pod a → pod c on the other node", a, c, c.addresses},
		{"pod a → itself", a, a, a.addresses},
		{"pod a → the gateway of its node", a, node1, gateways(n1)},
		{"pod a → its node's address", a, node1, node1.addresses},
		{"pod a → the other node's address", a, node2, node2.addresses},
		{"pod a → the other node's gateway", a, node2, gateways(n2)},
		{"pod a → the host outside", a, outside, outside.addresses},
		{"node-1 → its pod a", node1, a, a.addresses},
		{"node-1 → pod c on the other node", node1, c, c.addresses},
		{"node-2 → pod a on the other node", node2, a, a.addresses},
	} {
		at := labtest.Of(family, w.at)
		seen := trySend(w.from, w.to, at)
		if name, ok := names[seen]; ok {
			seen = name
		}
		if w.from.name == a.name {
			if lost := pings(t, l, pods[0], at); lost != "" {
				seen += ", but " + lost
			}
		}
		fmt.Fprintf(&out, "%s: from %s\n", w.title, seen)
	}
	return out.String()
}

// trySend talks by TCP and UDP and says which address the other side saw, or what went wrong.
func trySend(from, to host, at netip.Addr) string {
	tcp, err := talkTCP(from, to, at, 100_000)
	if err != nil {
		return fmt.Sprintf("nobody: TCP: %v", err)
	}
	udp, err := talkUDP(from, to, at, 1200)
	if err != nil {
		return fmt.Sprintf("nobody: UDP: %v", err)
	}
	if tcp != udp {
		return fmt.Sprintf("%s by TCP, %s by UDP", tcp, udp)
	}
	return tcp.String()
}
