package packets

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestAPodSendsOnlyAsItself has a pod pretend to be somebody else, in every way, and finds each packet
// counted as dropped for the right reason and none of them delivered.
func TestAPodSendsOnlyAsItself(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := labtest.AddPods(t, l, "b@node-1", "c@node-2")
	b, c := pods[0], pods[1]
	for i, s := range []struct{ what, send, reason string }{
		{"another IPv4 address", "ip address add 198.18.1.99/32 dev eth0; ping -c1 -W1 -I 198.18.1.99 {c4}", "spoofed"},
		{"the address of a pod on this node", "ip address add {b4}/32 dev eth0; ping -c1 -W1 -I {b4} {c4}", "spoofed"},
		{"an address of the outside", "ip address add 203.0.113.77/32 dev eth0; ping -c1 -W1 -I 203.0.113.77 {c4}", "spoofed"},
		{"another IPv6 address", "ip address add 2001:db8:42:1::99/128 dev eth0 nodad; ping -c1 -W1 -I 2001:db8:42:1::99 {c6}", "spoofed"},
		{"another MAC address", "ip link set eth0 address 0a:00:00:00:00:99; ping -c1 -W1 {c4}", "spoofed"},
		{"another MAC address, IPv6", "ip link set eth0 address 0a:00:00:00:00:99; ping -c1 -W1 {c6}", "spoofed"},
		{"a tunnel packet to its own node", "exec 3>/dev/udp/{n1}/6081; echo forged >&3", "tunnel-injection"},
		{"a tunnel packet to the other node", "exec 3>/dev/udp/{n2}/6081; echo forged >&3", "tunnel-injection"},
		{"a multicast packet", "ip route add 224.0.0.0/4 dev eth0; ping -c1 -W1 224.0.0.77", "multicast"},
		{"a packet to an address of its node that no pod has", "ping -c1 -W1 198.18.1.200", "no-such-pod"},
		{"a packet to a range that no node has", "ping -c1 -W1 198.18.200.5", "no-such-node"},
	} {
		before := drops(t, l, "node-1")[s.reason]
		a := addPod(t, l, fmt.Sprintf("a%d@node-1", i))
		mustPing(t, l, a, c)
		out := podExec(t, l, a, "bash", "-c", strings.NewReplacer(
			"{b4}", labtest.Of("IPv4", b.Addresses).String(), "{c4}", labtest.Of("IPv4", c.Addresses).String(), "{c6}", labtest.Of("IPv6", c.Addresses).String(),
			"{n1}", labtest.Node(t, l, "node-1").Addresses()[0].String(), "{n2}", labtest.Node(t, l, "node-2").Addresses()[0].String(),
		).Replace(s.send))
		if strings.Contains(s.send, "ping") && out.Code == 0 {
			t.Errorf("%s: answered\n%s", s.what, out.Stdout)
		}
		eventually(t, patience(), s.what, func() string {
			if now := drops(t, l, "node-1")[s.reason]; now <= before {
				return fmt.Sprintf("no drop counted as %s: %s%s", s.reason, out.Stdout, out.Stderr)
			}
			return ""
		})
	}

	a := addPod(t, l, "a@node-1")
	own := labtest.Of("IPv4", a.Addresses)
	before := drops(t, l, "node-1")["spoofed"]
	mac, _ := net.ParseMAC(strings.TrimSpace(podExec(t, l, a, "cat", "/sys/class/net/eth0/address").Stdout))
	request := func(sender netip.Addr, hardware net.HardwareAddr) []byte { // RFC 826
		f := append(append(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
		f = append(append(f, hardware...), sender.AsSlice()...)
		return append(append(f, make([]byte, 6)...), gateways(labtest.Node(t, l, "node-1"))[0].AsSlice()...)
	}
	for what, frame := range map[string][]byte{
		"ARP in another pod's name": request(labtest.Of("IPv4", b.Addresses), mac),
		"ARP with another MAC":      request(own, net.HardwareAddr{0x0a, 0, 0, 0, 0, 0x99}),
	} {
		if err := lab.Inside(a.NetNS, func() error { return sendFrame("eth0", frame) }); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience(), what, func() string {
			if now := drops(t, l, "node-1")["spoofed"]; now <= before {
				return "no drop counted as spoofed"
			}
			return ""
		})
		before = drops(t, l, "node-1")["spoofed"]
	}
}

// sendFrame sends one Ethernet frame as it is.
func sendFrame(link string, frame []byte) error {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: iface.Index})
}

// geneve is a Geneve packet (RFC 8926, section 3.4) that carries an echo request to a pod.
func geneve(vni uint32, to netip.Addr) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h[2:], 0x6558) // Ethernet inside
	binary.BigEndian.PutUint32(h[4:], vni<<8)
	frame := append(h, 0x0e, 0x77, 0, 0, 0, 1, 0x0e, 0x77, 0, 0, 0, 1, 0x08, 0)
	ip := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0, 203, 0, 113, 10}
	ip = append(ip, to.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	icmp := []byte{8, 0, 0, 0, 0x77, 0x77, 0, 1}
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return append(append(frame, ip...), icmp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestTheTunnelTakesPacketsOfKnownNodesOnly(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	a := addPod(t, l, "a@node-1")
	vni := statusOf(t, l, "node-1").VNI
	to := labtest.Of("IPv4", a.Addresses)
	received := func() string {
		// InEchos of /proc/net/snmp, which counts for this namespace alone.
		return podExec(t, l, a, "awk", "/^Icmp:/ && $2 != \"InMsgs\" {print $10}", "/proc/net/snmp").Stdout
	}
	send := func(from string, vni uint32) {
		t.Helper()
		target := netip.AddrPortFrom(labtest.Of("IPv4", labtest.Node(t, l, "node-1").Addresses()), 6081)
		if err := lab.Inside(from, func() error {
			// Without a checksum, which the sender's link would be left to fill in.
			d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
				if outer := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); outer != nil {
					return outer
				}
				return err
			}}
			c, err := d.Dial("udp4", target.String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(geneve(vni, to))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	before := received()
	for _, c := range []struct {
		what, from string
		vni        uint32
	}{
		{"from a host that is no node", labtest.OutsideNS(l), vni},
		{"from a node, with a VNI that is not ours", labtest.NodeNS(t, l, "node-2"), vni + 1},
	} {
		dropped := drops(t, l, "node-1")["unknown-peer"]
		send(c.from, c.vni)
		eventually(t, patience(), c.what, func() string {
			if drops(t, l, "node-1")["unknown-peer"] <= dropped {
				return "no drop counted as unknown-peer"
			}
			return ""
		})
		if now := received(); now != before {
			t.Errorf("%s: the pod got the packet", c.what)
		}
	}
	// The same packet from a node with our VNI arrives: the test can tell.
	send(labtest.NodeNS(t, l, "node-2"), vni)
	eventually(t, patience(), "the good packet arrives", func() string {
		if received() == before {
			return "the pod did not get it"
		}
		return ""
	})
}
