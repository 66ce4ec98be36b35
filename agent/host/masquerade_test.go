package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv4"
)

// newRoutedPod is a pod whose veth's host end stands in for the gateway port, a host that forwards and
// masquerades, and an outside beyond it that has a route back to nothing but the host.
func newRoutedPod(t *testing.T) (pod, outside ns.NetNS, table NFTables) {
	t.Helper()
	outside = newPeers(t, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64", "203.0.113.9/32"})
	pod = newNetNS(t)
	g := testGateway()
	v := podVeth(pod)
	v.Host, v.RouterMAC = g.Link, g.MAC
	must(t, AddVeth(t.Context(), v, nil))
	// Its host end stands for the gateway here, which has addresses and is no host end.
	must(t, netlink.LinkSetGroup(linkOf(t, v.Host), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+v.Host+"/disable_ipv6", []byte("0"), 0))
	g.RouterMAC = v.MAC
	ensure(t, g)
	must(t, (route{to: prefixes("203.0.113.0/24")[0], via: addrs("198.51.100.2")[0]}).put(mustSocket(t), linkOf(t, "uplink").Attrs().Index, 3))
	table = testTable()
	ensure(t, table)
	return pod, outside, table
}

// sourceSeen sends one packet from a namespace and returns the source that the receiver sees.
func sourceSeen(t *testing.T, from, at ns.NetNS, source, to netip.Addr, port int) netip.Addr {
	t.Helper()
	var in *net.UDPConn
	inside(t, at, func() (err error) {
		if to.IsMulticast() {
			l, err := net.InterfaceByName("uplink")
			if err != nil {
				return err
			}
			in, err = net.ListenMulticastUDP("udp4", l, &net.UDPAddr{IP: to.AsSlice(), Port: port})
			return err
		}
		in, err = net.ListenUDP("udp", &net.UDPAddr{IP: to.AsSlice(), Port: port})
		return err
	})
	defer in.Close()
	inside(t, from, func() error { return send(source, to, port) })
	must(t, in.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, seen, err := in.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatalf("nothing came from %s to %s: %v", source, to, err)
	}
	return seen.Addr().Unmap()
}

func send(source, to netip.Addr, port int) error {
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: source.AsSlice()}, &net.UDPAddr{IP: to.AsSlice(), Port: port})
	if err != nil {
		return err
	}
	defer c.Close()
	if to.IsMulticast() {
		l, err := net.InterfaceByName("uplink")
		if err := errors.Join(err, ipv4.NewPacketConn(c).SetMulticastInterface(l)); err != nil {
			return err
		}
	}
	_, err = c.Write([]byte("hello"))
	return err
}

func TestWhatLeavesThePodNetworkIsMasqueradedAndNothingElse(t *testing.T) {
	pod, outside, _ := newRoutedPod(t)
	host, err := ns.GetCurrentNS()
	must(t, err)
	defer host.Close()
	must(t, netlink.RouteAdd((route{to: prefixes("224.0.0.0/4")[0]}).request(linkOf(t, "uplink").Attrs().Index, 3)))
	for _, c := range []struct {
		from, at         ns.NetNS
		source, to, want string
		why              string
	}{
		{pod, outside, "10.244.1.5", "198.51.100.2", "198.51.100.1", "IPv4 leaves with the node's address"},
		{pod, outside, "2001:db8:244:1::5", "2001:db8:1::2", "2001:db8:1::1", "IPv6 leaves with the node's address"},
		{pod, outside, "10.244.1.5", "203.0.113.9", "10.244.1.5", "a range that is not masqueraded sees the pod"},
		{pod, host, "10.244.1.5", "198.51.100.1", "10.244.1.5", "the node sees the pod"},
		{host, pod, "10.244.1.1", "10.244.1.5", "10.244.1.1", "the pod sees the gateway"},
		{host, pod, "2001:db8:244:1::1", "2001:db8:244:1::5", "2001:db8:244:1::1", "the pod sees the IPv6 gateway"},
		{host, pod, "198.51.100.1", "10.244.1.5", "198.51.100.1", "the pod sees any other address of the node"},
		{host, outside, "10.244.1.1", "224.0.0.251", "10.244.1.1", "multicast keeps its source"},
	} {
		if got := sourceSeen(t, c.from, c.at, addrs(c.source)[0], addrs(c.to)[0], 5353); got != addrs(c.want)[0] {
			t.Errorf("%s: from %s to %s the receiver sees %s, want %s", c.why, c.source, c.to, got, c.want)
		}
	}
}

func TestWithoutAnyRangeThePodNetworkItselfIsNotMasqueraded(t *testing.T) {
	pod, _, table := newRoutedPod(t)
	table.NoMasquerade = nil
	ensure(t, table)
	host, err := ns.GetCurrentNS()
	must(t, err)
	defer host.Close()
	addAddress(t, "lo", "10.244.1.9/32")
	if got := sourceSeen(t, host, pod, addrs("10.244.1.9")[0], addrs("10.244.1.5")[0], 5353); got != addrs("10.244.1.9")[0] {
		t.Errorf("the pod sees %s, want 10.244.1.9", got)
	}
}

func TestTunnelPacketsOfPodsAreDroppedAndCounted(t *testing.T) {
	pod, outside, table := newRoutedPod(t)
	host, err := ns.GetCurrentNS()
	must(t, err)
	defer host.Close()
	var sockets []*net.UDPConn
	for _, at := range []ns.NetNS{host, outside} {
		inside(t, at, func() error {
			in, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(table.TunnelPort)})
			sockets = append(sockets, in)
			return err
		})
	}
	for _, to := range []string{"198.51.100.1", "2001:db8:1::1", "198.51.100.2", "2001:db8:1::2"} {
		inside(t, pod, func() error {
			source := ofFamily(podVeth(pod).Addresses, addrs(to)[0])
			return send(source, addrs(to)[0], int(table.TunnelPort))
		})
	}
	// Another packet along the same way, which does not overtake the tunnel packets.
	sourceSeen(t, pod, outside, addrs("10.244.1.5")[0], addrs("198.51.100.2")[0], 5353)
	count, err := table.Injected(t.Context())
	must(t, err)
	if count != 4 {
		t.Errorf("%d tunnel packets dropped, want 4: to the node and beyond, IPv4 and IPv6", count)
	}
	for _, in := range sockets {
		must(t, in.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, from, err := in.ReadFromUDPAddrPort(make([]byte, 16)); err == nil {
			t.Errorf("a tunnel packet came through, from %s", from)
		}
		in.Close()
	}
}

func TestTunnelPacketsOfTheNodeAreNotTracked(t *testing.T) {
	_, outside, table := newRoutedPod(t)
	host, err := ns.GetCurrentNS()
	must(t, err)
	defer host.Close()
	tracked := func() int {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		must(t, err)
		return len(flows)
	}
	before := tracked()
	sourceSeen(t, host, outside, addrs("198.51.100.1")[0], addrs("198.51.100.2")[0], int(table.TunnelPort))
	sourceSeen(t, outside, host, addrs("198.51.100.2")[0], addrs("198.51.100.1")[0], int(table.TunnelPort))
	if after := tracked(); after != before {
		t.Errorf("%d tracked connections became %d by tunnel packets", before, after)
	}
	sourceSeen(t, host, outside, addrs("198.51.100.1")[0], addrs("198.51.100.2")[0], 5353)
	if after := tracked(); after != before+1 {
		t.Errorf("%d tracked connections became %d by another packet, want one more", before, after)
	}
}
