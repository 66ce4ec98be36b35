package policies

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// attempts is how many pods are made: a few in an ordinary run, TWILL_FIRST_PODS in a long one.
func attempts(t *testing.T) int {
	t.Helper()
	text := os.Getenv("TWILL_FIRST_PODS")
	if text == "" {
		return 24
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("TWILL_FIRST_PODS %q is not a number of pods", text)
	}
	return n
}

// TestTheFirstAndTheLastPacketOfAPodAreBlocked has pods that send to a forbidden server from the moment their network
// namespace has an interface with an address, before ADD returns, until DEL has taken it away. The server counts what
// arrives. Pods that nothing forbids show that the server does hear first packets.
func TestTheFirstAndTheLastPacketOfAPodAreBlocked(t *testing.T) {
	l := up(t, 1)
	server, err := l.AddPod(t.Context(), lab.Pod{Namespace: "shop", Name: "server", Labels: map[string]string{"app": "server"}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := within(server.NetNS, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":7") })
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	var forbidden, allowed atomic.Int64
	go func() {
		b := make([]byte, 64)
		for {
			n, _, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if string(b[:n]) == "forbidden" {
				forbidden.Add(1)
			} else {
				allowed.Add(1)
			}
		}
	}()
	labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: not-from-strangers}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}, {podSelector: {matchLabels: {app: client}}}]}]
`)
	n := attempts(t)
	slots := make(chan struct{}, 4)
	var wg sync.WaitGroup
	var sent atomic.Int64
	var failed atomic.Int64
	for i := range n {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			word, app := "forbidden", "client"
			if i%8 == 7 {
				word, app = "allowed", "friend"
			}
			p := lab.Pod{Namespace: "shop", Name: fmt.Sprintf("p%d", i), Labels: map[string]string{"app": app}}
			ctx, stop := context.WithCancel(t.Context())
			var sender sync.WaitGroup
			sender.Go(func() { sent.Add(shout(ctx, l, p, server.Addresses, word)) })
			p, err := l.AddPod(t.Context(), p)
			if err != nil {
				failed.Add(1)
				t.Errorf("%v", err)
			} else {
				// One more after ADD has returned, from the pod itself.
				for _, a := range server.Addresses {
					_, _ = within(p.NetNS, func() (int, error) { return send(a, word) })
				}
			}
			if err == nil {
				if err := l.RemovePod(t.Context(), p.String()); err != nil {
					t.Error(err)
				}
			}
			stop()
			sender.Wait()
		})
	}
	wg.Wait()
	t.Logf("%d pods, %d packets sent from before ADD returned until DEL did; %d forbidden ones arrived, %d allowed ones", n, sent.Load(), forbidden.Load(), allowed.Load())
	if forbidden.Load() > 0 {
		t.Errorf("%d packets of forbidden pods arrived", forbidden.Load())
	}
	if allowed.Load() == 0 {
		t.Error("no packet of an allowed pod arrived: the test shows nothing")
	}
	if sent.Load() == 0 {
		t.Error("no packet was sent")
	}
}

// shout sends from the pod's namespace without a pause from the moment that it exists, until ctx ends.
func shout(ctx context.Context, l *lab.Lab, p lab.Pod, to []netip.Addr, word string) (sent int64) {
	path := lab.NetNSPath(l, p)
	for ctx.Err() == nil {
		n, err := within(path, func() (int64, error) {
			var n int64
			for ctx.Err() == nil {
				for _, a := range to {
					if _, err := send(a, word); err == nil {
						n++
					}
				}
				time.Sleep(200 * time.Microsecond) // no waiting: the pace of the sender
			}
			return n, nil
		})
		sent += n
		if err != nil {
			time.Sleep(200 * time.Microsecond) // the namespace is not there yet
		}
	}
	return sent
}

func send(to netip.Addr, word string) (int, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.Write([]byte(word))
}
