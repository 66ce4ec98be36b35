package services

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// sctpChunk is a packet with one chunk, INIT (1) or INIT ACK (2), of RFC 9260 §3; tag is the sender's, verification the receiver's, 0
// in an INIT (the kernel's connection tracking looks at it). A kernel without SCTP sends and gets it all the same, by a raw socket.
func sctpChunk(kind byte, from, to uint16, verification, tag uint32) []byte {
	b := make([]byte, 12+20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], verification)
	b[12] = kind
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], tag)
	binary.BigEndian.PutUint32(b[20:], 65536)        // receiver window, bytes
	binary.BigEndian.PutUint32(b[24:], 1<<16|1)      // streams out and in
	binary.LittleEndian.PutUint32(b[8:], sctpSum(b)) // RFC 9260 Appendix A
	return b
}

func sctpSum(b []byte) uint32 {
	c := append([]byte{}, b...)
	copy(c[8:12], []byte{0, 0, 0, 0})
	return crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli))
}

// rawIP opens a raw socket for SCTP in a namespace.
func rawIP(t *testing.T, ns, family string) *net.IPConn {
	t.Helper()
	var c *net.IPConn
	network := map[string]string{"IPv4": "ip4:132", "IPv6": "ip6:132"}[family]
	if err := lab.Inside(ns, func() (err error) { c, err = net.ListenIP(network, nil); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveSCTP answers each INIT with an INIT ACK and tells what it saw: who sent it, and the port that it was for.
func serveSCTP(c *net.IPConn) <-chan netip.AddrPort {
	saw := make(chan netip.AddrPort, 64)
	go func() {
		for b := make([]byte, 256); ; {
			n, from, err := c.ReadFromIP(b)
			if err != nil {
				return
			}
			if n < 32 || b[12] != 1 || sctpSum(b[:n]) != binary.LittleEndian.Uint32(b[8:]) {
				continue
			}
			a, _ := netip.AddrFromSlice(from.IP)
			select {
			case saw <- netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[2:])):
			default:
			}
			_, _ = c.WriteToIP(sctpChunk(2, binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[16:]), 7), from)
		}
	}()
	return saw
}

// initiate sends an INIT and waits for the INIT ACK, which has to come from whom it was sent to.
func initiate(c *net.IPConn, to netip.Addr, from, port uint16) error {
	if _, err := c.WriteToIP(sctpChunk(1, from, port, 0, 5), &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(shortly))
	for b := make([]byte, 256); ; {
		n, by, err := c.ReadFromIP(b)
		if err != nil {
			return err
		}
		if n < 32 || b[12] != 2 || binary.BigEndian.Uint16(b[2:]) != from {
			continue
		}
		if a, _ := netip.AddrFromSlice(by.IP); a.Unmap() != to {
			return fmt.Errorf("the answer comes from %s, want %s", a, to)
		}
		if got := binary.BigEndian.Uint16(b); got != port {
			return fmt.Errorf("the answer comes from port %d, want %d", got, port)
		}
		return nil
	}
}

// TestSCTPReachesAnEndpointByTheClusterIP: association set-up by real packets, to an endpoint on the same node and on another. The ports
// are equal: the userspace datapath translates addresses of SCTP alone.
func TestSCTPReachesAnEndpointByTheClusterIP(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "client@node-1", "stranger@node-1", "near@node-1", "far@node-2")
	const port = 3868
	var text strings.Builder
	vips := map[string][]string{"near": {"198.19.0.10", "2001:db8:1919::a"}, "far": {"198.19.0.11", "2001:db8:1919::b"}}
	for name, ips := range vips {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\nspec: {clusterIPs: [%q, %q], ports: [{name: diameter, port: %d, protocol: SCTP}]}\n",
			name, ips[0], ips[1], port)
		for _, family := range []string{"IPv4", "IPv6"} {
			fmt.Fprintf(&text, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-%s, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}\n"+
				"addressType: %[3]s\nports: [{name: diameter, port: %[4]d, protocol: SCTP}]\nendpoints: [{addresses: [%[5]q], nodeName: %[6]s}]\n",
				name, strings.ToLower(family), family, port, labtest.Of(family, pods[name].Addresses), pods[name].Node)
		}
	}
	labtest.Apply(t, l, text.String())
	for _, family := range []string{"IPv4", "IPv6"} {
		client, stranger := rawIP(t, pods["client"].NetNS, family), rawIP(t, pods["stranger"].NetNS, family)
		for name, ips := range vips {
			saw := serveSCTP(rawIP(t, pods[name].NetNS, family))
			vip := netip.MustParseAddr(ips[0])
			if labtest.FamilyOf(vip) != family {
				vip = netip.MustParseAddr(ips[1])
			}
			labtest.Eventually(t, 5*patience, "INIT ACK from "+vip.String(), func() error { return initiate(client, vip, 40000, port) })
			for range 3 { // of a connection that is known
				if err := initiate(client, vip, 40000, port); err != nil {
					t.Errorf("%s again: %v", vip, err)
				}
			}
			if got, want := <-saw, netip.AddrPortFrom(labtest.Of(family, pods["client"].Addresses), port); got != want {
				t.Errorf("%s: the endpoint sees %s, want %s", vip, got, want)
			}
			// By somebody who has no association: there, too, the userspace datapath knows addresses alone.
			if err := initiate(stranger, vip, 40001, port+1); err == nil {
				t.Errorf("%s answers at port %d, which the Service does not have", vip, port+1)
			}
			if err := initiate(stranger, vip, 40002, port); err != nil { // so it was not the stranger that could not ask
				t.Errorf("%s by somebody else, at the right port: %v", vip, err)
			}
		}
	}
}
