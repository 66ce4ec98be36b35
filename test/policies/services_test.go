package policies

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// service is a Service with one endpoint, TCP and UDP port 80, and a node port.
func service(name string, number, nodePort int, to lab.Pod) string {
	text := fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec:
  type: NodePort
  clusterIPs: [198.19.0.%[2]d, "2001:db8:1919::%[2]d"]
  ports:
  - {name: tcp, port: 80, protocol: TCP, nodePort: %[3]d}
  - {name: udp, port: 80, protocol: UDP, nodePort: %[3]d}
`, name, number, nodePort)
	for _, family := range []string{"IPv4", "IPv6"} {
		text += fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-%[2]s, namespace: shop, labels: {kubernetes.io/service-name: %[1]s}}
addressType: %[3]s
ports: [{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}]
endpoints: [{addresses: [%[4]q], nodeName: %[5]s}]
`, name, strings.ToLower(family), family, labtest.Of(family, to.Addresses), to.Node)
	}
	return text
}

// way is one way to a server that a policy protects.
type way struct {
	probe
	name    string
	allowed bool
}

// TestNoServiceLeadsPastAPolicy has a server on each node that only friends may reach. Strangers reach neither by any
// way: its address, its ClusterIP, the node port of either node, from pods of both nodes and from outside. Before the
// policy, all of them do; friends still do, where the server can see that they are.
func TestNoServiceLeadsPastAPolicy(t *testing.T) {
	l := up(t, 2)
	var specs []lab.Pod
	for _, node := range []string{"1", "2"} {
		for _, app := range []string{"server", "friend", "stranger"} {
			specs = append(specs, lab.Pod{Namespace: "shop", Name: app + node, Node: "node-" + node, Labels: map[string]string{"app": app}})
		}
	}
	list, err := l.AddPods(t.Context(), specs)
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]lab.Pod{}
	for _, p := range list {
		pods[p.Name] = p
	}
	for _, s := range []string{"server1", "server2"} {
		serve(t, pods[s], 80)
	}
	labtest.Apply(t, l, service("one", 11, 30081, pods["server1"])+service("two", 12, 30082, pods["server2"]))
	outside := lab.Pod{Name: "outside", NetNS: labtest.OutsideNS(l)}
	var ways []way
	for i, server := range []lab.Pod{pods["server1"], pods["server2"]} {
		for _, family := range []string{"IPv4", "IPv6"} {
			address := labtest.Of(family, server.Addresses)
			vip := netip.MustParseAddr(fmt.Sprintf(map[string]string{"IPv4": "198.19.0.1%d", "IPv6": "2001:db8:1919::1%d"}[family], i+1))
			for _, protocol := range []string{"TCP", "UDP"} {
				for _, client := range []string{"friend1", "friend2", "stranger1", "stranger2"} {
					friend := strings.HasPrefix(client, "friend")
					ways = append(ways, way{probe{pods[client], server, address, protocol, 80}, "address", friend},
						way{probe{pods[client], server, vip, protocol, 80}, "ClusterIP", friend})
				}
				for n := range 2 {
					node := labtest.Of(family, labtest.Node(t, l, fmt.Sprintf("node-%d", n+1)).Addresses())
					for _, client := range []lab.Pod{pods["stranger1"], pods["stranger2"], outside} {
						ways = append(ways, way{probe{client, server, node, protocol, 30081 + i}, fmt.Sprintf("node port of node-%d", n+1), false})
					}
				}
			}
		}
	}
	check := func(when string, want func(way) bool) {
		t.Helper()
		probes := make([]probe, len(ways))
		by := map[string]way{}
		for i, w := range ways {
			probes[i], by[w.probe.String()] = w.probe, w
		}
		for _, p := range compare(probes, func(p probe) bool { return want(by[p.String()]) }) {
			t.Errorf("%s: %s by its %s: allowed must be %v", when, p, by[p.String()].name, want(by[p.String()]))
		}
	}
	check("without a policy", func(way) bool { return true })
	defer labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
`)()
	check("only friends", func(w way) bool { return w.allowed })
	t.Logf("%d ways", len(ways))
}

// TestAnErrorAboutAnAllowedConnectionPasses: a pod that nobody may reach learns from ICMP that a port is closed which it
// may ask. The same server may not reach it by a packet of its own.
func TestAnErrorAboutAnAllowedConnectionPasses(t *testing.T) {
	l := up(t, 2)
	pods := clientNearFar(t, l)
	client := pods[0]
	serve(t, client, 90)
	defer labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
  egress: [{ports: [{protocol: UDP, port: 9}]}]
`)()
	inForce(t, l, "node-1", "networkpolicy/shop/client/egress/0")
	for _, server := range pods[1:] {
		for i, a := range server.Addresses {
			c, err := within(client.NetNS, func() (net.Conn, error) { return net.Dial("udp", netip.AddrPortFrom(a, 9).String()) })
			if err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, 5*time.Second, fmt.Sprintf("port unreachable from %s", a), func() error {
				_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond)) // a socket that cannot have one fails below
				_, err := c.Write([]byte("?"))
				if err == nil {
					_, err = c.Read(make([]byte, 4))
				}
				if errors.Is(err, syscall.ECONNREFUSED) {
					return nil
				}
				return fmt.Errorf("the client is told %v", err)
			})
			c.Close()
			back := probe{server, client, client.Addresses[i], "UDP", 90}
			if !back.is(false) {
				t.Errorf("%s is answered, though nobody may reach the client", back)
			}
		}
	}
}

// TestOpenPodsDoNotMeetConntrack: of the datapath flows of a node that has an isolated pod, those between pods that no
// policy selects do not send packets to conntrack; those of the isolated pod do. What comes back from conntrack
// (recirc_id above 0) was sent there by one of these.
func TestOpenPodsDoNotMeetConntrack(t *testing.T) {
	l := up(t, 2)
	pods, err := l.AddPods(t.Context(), []lab.Pod{
		{Namespace: "shop", Name: "isolated", Node: "node-1", Labels: map[string]string{"app": "isolated"}},
		{Namespace: "shop", Name: "a", Node: "node-1"}, {Namespace: "shop", Name: "b", Node: "node-1"}, {Namespace: "shop", Name: "far", Node: "node-2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		serve(t, p, 80)
	}
	defer labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: isolated}
spec:
  podSelector: {matchLabels: {app: isolated}}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 80}]}]
`)()
	inForce(t, l, "node-1", "networkpolicy/shop/isolated/ingress/0")
	isolated, a, b, far := pods[0], pods[1], pods[2], pods[3]
	for _, p := range []probe{{a, b, b.Addresses[0], "TCP", 80}, {a, far, far.Addresses[0], "TCP", 80}, {far, b, b.Addresses[0], "UDP", 80}, {a, isolated, isolated.Addresses[0], "TCP", 80}} {
		if !p.is(true) {
			t.Fatalf("%s is not answered", p)
		}
	}
	dump := labtest.OnNode(t, l, "node-1", "ovs-appctl", "dpctl/dump-flows")
	open, tracked := 0, 0
	for line := range strings.Lines(dump) {
		if !strings.Contains(line, "eth_type(0x0800)") || !strings.Contains(line, "recirc_id(0)") {
			continue
		}
		_, actions, _ := strings.Cut(line, "actions:")
		ct := strings.Contains(actions, "ct(") || strings.Contains(actions, "recirc(")
		ofIsolated := strings.Contains(line, isolated.Addresses[0].String())
		switch {
		case ofIsolated && ct:
			tracked++
		case ct:
			t.Errorf("a flow of open pods meets conntrack: %s", line)
		case !ofIsolated:
			open++
		}
	}
	t.Logf("%d datapath flows of open pods without conntrack, %d of the isolated pod with it", open, tracked)
	if open == 0 || tracked == 0 {
		t.Errorf("the dump shows nothing:\n%s", dump)
	}
}
