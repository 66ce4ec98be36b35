package packets

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestDatagramsLargerThanThePathArrive sends datagrams in fragments to a pod, to a Service and to a pod that a policy lets them
// reach by their port. Only the first fragment has a port. The kernel's datapath looks at the whole that conntrack has put
// together; the userspace datapath hands on fragments behind conntrack, and there the latter two do not work
// (docs/pipeline.md, "Known limit: fragments"): on that they get datagrams in one piece.
func TestDatagramsLargerThanThePathArrive(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	client, near, far := addPod(t, l, "client@node-1"), addPod(t, l, "near@node-1"), addPod(t, l, "far@node-2")
	for _, p := range []lab.Pod{near, far} {
		var u net.PacketConn
		if err := lab.Inside(p.NetNS, func() (err error) { u, err = net.ListenPacket("udp", ":7000"); return err }); err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		go func() {
			for b := make([]byte, 8192); ; {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
	}
	echoes := func(size int, at netip.AddrPort) error {
		return lab.Inside(client.NetNS, func() error {
			c, err := net.Dial("udp", at.String())
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write(make([]byte, size)); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(patience())); err != nil {
				return err
			}
			n, err := c.Read(make([]byte, 8192))
			if err == nil && n != size {
				err = fmt.Errorf("the answer has %d bytes", n)
			}
			return err
		})
	}
	// Several times: what a lost fragment takes along is a whole datagram, and the first meets no datapath flow.
	must := func(what string, size int, at netip.AddrPort) {
		t.Helper()
		eventually(t, 5*patience(), what, func() string {
			if err := echoes(size, at); err != nil {
				return fmt.Sprintf("%d bytes to %s: %v", size, at, err)
			}
			return ""
		})
	}
	const large = 4000
	vips := map[string]string{"IPv4": "198.19.0.20", "IPv6": "2001:db8:1919::20"}
	for _, family := range families(l) {
		for _, p := range []lab.Pod{near, far} {
			must(p.Name, large, netip.AddrPortFrom(labtest.Of(family, p.Addresses), 7000))
		}
	}
	size := large
	if l.Datapath == "netdev" {
		size = 400
	}
	manifest := "apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec: {ipFamilyPolicy: PreferDualStack, clusterIPs: ["
	for _, family := range families(l) {
		manifest += fmt.Sprintf("%q, ", vips[family])
	}
	manifest += "], ports: [{port: 70, targetPort: 7000, protocol: UDP}]}\n"
	for _, family := range families(l) {
		manifest += fmt.Sprintf("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: echo-%s, labels: {kubernetes.io/service-name: echo}}\n"+
			"addressType: %s\nports: [{port: 7000, protocol: UDP}]\nendpoints: [{addresses: [%q], nodeName: node-2}]\n", strings.ToLower(family), family, labtest.Of(family, far.Addresses))
	}
	manifest += `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: echo}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{ports: [{port: 7000, protocol: UDP}]}]
  egress: [{ports: [{port: 7000, protocol: UDP}]}]
`
	defer labtest.Apply(t, l, manifest)()
	for _, node := range []string{"node-1", "node-2"} {
		eventually(t, patience(), "the policy is in force on "+node, func() string {
			out, err := l.NodeExec(t.Context(), node, "twill", "flows", "--policy", "default/echo")
			if err != nil || out.Code != 0 || !strings.Contains(out.Stdout, "allowed by a rule") {
				return fmt.Sprintf("no flows of it: %v, %s", err, out.Stderr) // the tool fails while there are none
			}
			return ""
		})
	}
	for _, family := range families(l) {
		for _, p := range []lab.Pod{near, far} {
			must("by a policy: "+p.Name, size, netip.AddrPortFrom(labtest.Of(family, p.Addresses), 7000))
		}
		must("Service", size, netip.AddrPortFrom(netip.MustParseAddr(vips[family]), 70))
	}
}
