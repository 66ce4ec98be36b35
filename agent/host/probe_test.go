package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// newPeers is a host joined to a second one that has the same link with these addresses.
func newPeers(t *testing.T, here, there []string) (peer ns.NetNS) {
	t.Helper()
	newHost(t)
	peer = newNetNS(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	link := netlink.NewVeth(attrs)
	link.PeerName, link.PeerNamespace = "uplink", netlink.NsFd(peer.Fd())
	must(t, netlink.LinkAdd(link))
	setUp(t, "uplink")
	for _, a := range here {
		addAddress(t, "uplink", a)
	}
	inside(t, peer, func() error {
		l, err := netlink.LinkByName("uplink")
		err = errors.Join(err, netlink.LinkSetUp(l))
		for _, a := range there {
			request := addressRequest(netip.MustParsePrefix(a).Addr())
			request.IPNet = toIPNet(netip.MustParsePrefix(a))
			err = errors.Join(err, netlink.AddrAdd(l, request))
		}
		return err
	})
	return peer
}

func newProber(t *testing.T) *Prober {
	t.Helper()
	log := logrus.New()
	log.SetOutput(t.Output())
	p, err := NewProber(log)
	must(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestAPeerAnswersProbesOfBothFamiliesManyAtOnce(t *testing.T) {
	newPeers(t, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	p := newProber(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 200)
	for i := range errs {
		src, dst := addrs("198.51.100.1", "198.51.100.2")[0], addrs("198.51.100.2")[0]
		if i%2 == 1 {
			src, dst = addrs("2001:db8:1::1")[0], addrs("2001:db8:1::2")[0]
		}
		size := 0
		if i%20 < 2 { // few: replies wait in the socket while this process gets no processor
			size = 1400
		}
		wg.Go(func() {
			rtt, err := p.Probe(ctx, src, dst, size)
			if err == nil && rtt <= 0 {
				err = fmt.Errorf("a round trip of %s to %s", rtt, dst)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	if len(p.waiting) != 0 {
		t.Errorf("%d probes are still kept", len(p.waiting))
	}
}

// TestAProbeLeavesWithTheSourceItWasGiven: the peer sees it, though the kernel would choose another one. It has no route back.
func TestAProbeLeavesWithTheSourceItWasGiven(t *testing.T) {
	peer := newPeers(t, []string{"198.51.100.1/24", "203.0.113.1/32", "2001:db8:1::1/64", "2001:db8:2::1/128"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	p := newProber(t)
	for _, c := range []struct {
		network, any, from, to string
		request                icmp.Type
	}{
		{"ip4:icmp", "0.0.0.0", "203.0.113.1", "198.51.100.2", ipv4.ICMPTypeEcho},
		{"ip6:ipv6-icmp", "::", "2001:db8:2::1", "2001:db8:1::2", ipv6.ICMPTypeEchoRequest},
	} {
		var seen *icmp.PacketConn
		inside(t, peer, func() (err error) { seen, err = icmp.ListenPacket(c.network, c.any); return err })
		defer seen.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		answer := make(chan error, 1)
		go func() {
			_, err := p.Probe(ctx, addrs(c.from)[0], addrs(c.to)[0], 0)
			answer <- err
		}()
		must(t, seen.SetReadDeadline(time.Now().Add(10*time.Second)))
		for b := make([]byte, 1500); ; {
			n, from, err := seen.ReadFrom(b)
			must(t, err)
			m, err := icmp.ParseMessage(c.request.(interface{ Protocol() int }).Protocol(), b[:n])
			if err != nil || m.Type != c.request {
				continue // Neighbor Discovery
			}
			if from.String() != c.from {
				t.Errorf("from %s: the peer sees %s", c.from, from)
			}
			break
		}
		cancel()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Errorf("from %s: got %v, want no reply", c.from, err)
		}
	}
}

func TestAProbeWithoutARouteSaysSoAtOnce(t *testing.T) {
	newHost(t)
	p := newProber(t)
	if _, err := p.Probe(t.Context(), netip.Addr{}, addrs("203.0.113.9")[0], 0); err == nil {
		t.Error("got no error")
	}
}

// TestALargeProbeTellsWhetherTheWayIsWideEnough: the peer's link takes 1300 bytes, whatever this end thinks.
func TestALargeProbeTellsWhetherTheWayIsWideEnough(t *testing.T) {
	peer := newPeers(t, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	inside(t, peer, func() error {
		l, err := netlink.LinkByName("uplink")
		return errors.Join(err, netlink.LinkSetMTU(l, 1300))
	})
	p := newProber(t)
	for _, c := range []struct {
		from, to string
		size     int
		arrives  bool
	}{
		{"198.51.100.1", "198.51.100.2", 0, true}, {"198.51.100.1", "198.51.100.2", 1300, true}, {"198.51.100.1", "198.51.100.2", 1400, false},
		{"2001:db8:1::1", "2001:db8:1::2", 0, true}, {"2001:db8:1::1", "2001:db8:1::2", 1300, true}, {"2001:db8:1::1", "2001:db8:1::2", 1400, false},
	} {
		patience := 10 * time.Second
		if !c.arrives {
			patience = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if _, err := p.Probe(ctx, addrs(c.from)[0], addrs(c.to)[0], c.size); (err == nil) != c.arrives {
			t.Errorf("%d bytes to %s: %v", c.size, c.to, err)
		}
		cancel()
	}
}
