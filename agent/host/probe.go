package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Prober asks by ICMP echo whether a peer can be reached through the overlay. All probes of a family
// share one raw socket, in the network namespace in which the Prober was made; any number may be
// under way at once.
type Prober struct {
	log  logrus.FieldLogger
	v4   *icmp.PacketConn
	v6   *icmp.PacketConn
	no6  error  // why there is no v6
	mine []byte // what our echo requests carry: raw sockets see the replies to everybody's

	mu      sync.Mutex
	next    uint16
	waiting map[echo]chan<- time.Time
}

// echo identifies a probe under way.
type echo struct {
	peer     netip.Addr
	sequence uint16
}

// NewProber opens the sockets, which needs CAP_NET_RAW. A kernel without IPv6 is no error here: the
// probes of IPv6 addresses then say so.
func NewProber(log logrus.FieldLogger) (*Prober, error) {
	p := &Prober{log: log, mine: make([]byte, 16), waiting: map[echo]chan<- time.Time{}}
	rand.Read(p.mine) // never fails (crypto/rand)
	v4, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open a raw ICMP socket, see that the agent has CAP_NET_RAW: %w", err)
	}
	replies4 := ipv4.ICMPFilter{}
	replies4.SetAll(true)
	replies4.Accept(ipv4.ICMPTypeEchoReply)
	if err := v4.IPv4PacketConn().SetICMPFilter(&replies4); err != nil {
		return nil, errors.Join(fmt.Errorf("let only echo replies into the ICMP socket: %w", err), v4.Close())
	}
	p.v4 = v4
	go p.receive(v4, ipv4.ICMPTypeEchoReply)

	v6, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		p.no6 = fmt.Errorf("no raw ICMPv6 socket, is IPv6 switched off: %w", err)
		return p, nil
	}
	replies6 := ipv6.ICMPFilter{}
	replies6.SetAll(true)
	replies6.Accept(ipv6.ICMPTypeEchoReply)
	if err := v6.IPv6PacketConn().SetICMPFilter(&replies6); err != nil {
		return nil, errors.Join(fmt.Errorf("let only echo replies into the ICMPv6 socket: %w", err), v4.Close(), v6.Close())
	}
	p.v6 = v6
	go p.receive(v6, ipv6.ICMPTypeEchoReply)
	return p, nil
}

// Close ends the Prober; probes under way run into the end of their context.
func (p *Prober) Close() error {
	err := p.v4.Close()
	if p.v6 != nil {
		err = errors.Join(err, p.v6.Close())
	}
	return err
}

// Probe sends one echo request from src to dst and waits for the reply or for the end of ctx, which
// is the timeout. It returns the round trip time. size is the length of the IP packet in bytes; 0 is a small one. The
// reply is of the same size, so one that comes tells that such packets pass both ways.
func (p *Prober) Probe(ctx context.Context, src, dst netip.Addr, size int) (rtt time.Duration, err error) {
	if dst.Is6() && p.v6 == nil {
		return 0, fmt.Errorf("probe %s: %w", dst, p.no6)
	}
	got := make(chan time.Time, 1)
	id := p.register(dst, got)
	defer p.forget(id)

	sent := time.Now()
	if err := p.send(src, id, size); err != nil {
		return 0, fmt.Errorf("probe %s from %s: %w", dst, src, err)
	}
	select {
	case at := <-got:
		return at.Sub(sent), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("no echo reply of %s to %s within %s: %w", dst, src, time.Since(sent).Round(time.Millisecond), ctx.Err())
	}
}

func (p *Prober) register(peer netip.Addr, got chan<- time.Time) echo {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	id := echo{peer, p.next}
	p.waiting[id] = got
	return id
}

func (p *Prober) forget(id echo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, id)
}

// headers are those of IP and of an echo request (RFC 791, RFC 8200, RFC 792), in bytes.
func headers(v4 bool) int {
	if v4 {
		return 20 + 8
	}
	return 40 + 8
}

func (p *Prober) send(src netip.Addr, id echo, size int) error {
	to := &net.IPAddr{IP: id.peer.AsSlice()}
	data := append(bytes.Clone(p.mine), make([]byte, max(0, size-headers(id.peer.Is4())-len(p.mine)))...)
	body := &icmp.Echo{ID: int(p.mine[0])<<8 | int(p.mine[1]), Seq: int(id.sequence), Data: data}
	if id.peer.Is4() {
		b, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: body}).Marshal(nil)
		if err != nil {
			return err
		}
		_, err = p.v4.IPv4PacketConn().WriteTo(b, &ipv4.ControlMessage{Src: src.AsSlice()}, to)
		return err
	}
	b, err := (&icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: body}).Marshal(nil) // the kernel adds the checksum
	if err != nil {
		return err
	}
	_, err = p.v6.IPv6PacketConn().WriteTo(b, &ipv6.ControlMessage{Src: src.AsSlice()}, to)
	return err
}

// receive hands replies to whoever waits for them, until the socket is closed.
func (p *Prober) receive(c *icmp.PacketConn, reply icmp.Type) {
	b := make([]byte, 1<<16) // an IP packet is no longer
	for {
		n, from, err := c.ReadFrom(b)
		at := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.WithError(err).Warn("read from the ICMP socket of the overlay probe")
			continue
		}
		m, err := icmp.ParseMessage(reply.(interface{ Protocol() int }).Protocol(), b[:n])
		if err != nil || m.Type != reply {
			continue
		}
		body, ok := m.Body.(*icmp.Echo)
		if !ok || !bytes.HasPrefix(body.Data, p.mine) {
			continue
		}
		p.deliver(echo{fromIP(from.(*net.IPAddr).IP), uint16(body.Seq)}, at)
	}
}

func (p *Prober) deliver(id echo, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.waiting[id] <- at:
	default: // nobody waits any more, or it is the second reply
	}
}
