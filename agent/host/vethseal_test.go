package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestTheHostTakesNothingFromAPodByItsHostEnd has a pod that sends to the MAC of its host end what is for the host itself.
// Links of another group show that it would arrive.
func TestTheHostTakesNothingFromAPodByItsHostEnd(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	gateways := v.Gateways
	v.Gateways, v.Routes, v.DefaultRoute = nil, nil, false
	must(t, AddVeth(t.Context(), v, nil))
	addBridge(t, "twill0", gateways[0].String()+"/24", gateways[1].String()+"/64")
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+v.Host+"/disable_ipv6", []byte("0"), 0)) // as where sysctls cannot be written
	_, err := NFTables{GatewayLink: "twill0"}.Ensure(t.Context())
	must(t, err)

	link := linkOf(t, v.Host)
	if a := link.Attrs(); a.Group != podGroup {
		t.Errorf("the host end is in link group %d, want %d", a.Group, podGroup)
	}
	for i, gw := range gateways {
		u, err := net.ListenPacket("udp", netip.AddrPortFrom(gw, 7).String())
		must(t, err)
		defer u.Close()
		inside(t, pod, func() error {
			eth0, err := netlink.LinkByName(v.IfName)
			if err != nil {
				return err
			}
			route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: toIPNet(single(gw)), Scope: netlink.SCOPE_LINK}
			if err := netlink.RouteReplace(route); err != nil {
				return err
			}
			return netlink.NeighSet(neighbour{gw, link.Attrs().HardwareAddr}.request(eth0.Attrs().Index))
		})
		heard := func(word string) bool {
			inside(t, pod, func() error {
				c, err := net.Dial("udp", netip.AddrPortFrom(gw, 7).String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte(word))
				return err
			})
			// What a pod sends is with the host, or dropped, by the time that the call returns (net/core/dev.c,
			// netif_rx); the deadline is for reading what is there already.
			must(t, u.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			b := make([]byte, 64)
			n, _, err := u.ReadFrom(b)
			return err == nil && string(b[:n]) == word
		}
		must(t, netlink.LinkSetGroup(link, 0))
		if !heard("open") {
			t.Errorf("%s: nothing arrives by a host end that is not sealed: the test shows nothing", gw)
		}
		if wrong := CheckVeth(v); !strings.Contains(strings.Join(wrong, " "), "is in link group 0") {
			t.Errorf("CheckVeth says %q of a host end that is not sealed", wrong)
		}
		must(t, (&Links{}).Seal("missing", v.Host))
		if heard(fmt.Sprint("sealed", i)) {
			t.Errorf("%s: the host took a packet by the host end of a pod", gw)
		}
	}
}

// TestTheHostAnswersNoARPOfAPod has a pod that asks for the address of the gateway, which is the host's.
func TestTheHostAnswersNoARPOfAPod(t *testing.T) {
	newHost(t)
	pod := newNetNS(t)
	v := podVeth(pod)
	must(t, AddVeth(t.Context(), v, nil))
	addBridge(t, "twill0", v.Gateways[0].String()+"/24")
	mac := linkOf(t, v.Host).Attrs().HardwareAddr
	answered := func() (yes bool) {
		inside(t, pod, func() error {
			s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ARP)))
			if err != nil {
				return err
			}
			defer unix.Close(s)
			eth0, err := netlink.LinkByName(v.IfName)
			if err != nil {
				return err
			}
			frame := append(append(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, v.MAC...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1) // RFC 826
			frame = append(append(frame, v.MAC...), v.Addresses[0].AsSlice()...)
			frame = append(append(frame, make([]byte, 6)...), v.Gateways[0].AsSlice()...)
			if err := unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Attrs().Index}); err != nil {
				return err
			}
			if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
				return err
			}
			b := make([]byte, 128)
			for {
				n, _, err := unix.Recvfrom(s, b, 0)
				if err != nil {
					return nil // nobody answers
				}
				if n >= 14 && net.HardwareAddr(b[6:12]).String() == mac.String() {
					yes = true
				}
			}
		})
		return yes
	}
	if answered() {
		t.Error("the host answered for the gateway")
	}
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+v.Host+"/arp_ignore", []byte("0"), 0))
	if !answered() {
		t.Error("the host does not answer where it may: the test shows nothing")
	}
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }
