package services

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// backend is an endpoint that notes when it got its last datagram, and whose TCP ends when its pod would.
type backend struct {
	pod    lab.Pod
	tcp    net.Listener
	last   atomic.Int64 // Unix time in nanoseconds
	number atomic.Int64
}

func newBackend(t *testing.T, p lab.Pod, port uint16) *backend {
	t.Helper()
	b := &backend{pod: p}
	var u *net.UDPConn
	if err := lab.Inside(p.NetNS, func() (err error) {
		if b.tcp, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		u, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.tcp.Close(); u.Close() })
	go labtest.Accept(b.tcp, func(c net.Conn) {
		buf := make([]byte, 64)
		c.SetDeadline(time.Now().Add(patience))
		if n, err := c.Read(buf); err == nil {
			_, _ = c.Write(buf[:n])
		}
	})
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(buf[:1], from) // a connection that nobody answers is a new one to Open vSwitch
			b.last.Store(time.Now().UnixNano())
			b.number.Add(1)
		}
	}()
	return b
}

// TestAllEndpointsAreReplacedUnderLoad is a rolling update: for each endpoint a new one gets ready, the old one terminates while it still
// serves, leaves its slice, and stops. 200 connections a second must not notice; datagrams of clients that never pause must
// have left the old one a second after its removal.
func TestAllEndpointsAreReplacedUnderLoad(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	const replaced = 4
	specs := []string{"client@node-1"}
	for i := range 2 * replaced {
		specs = append(specs, fmt.Sprintf("server-%d@node-%d", i, 1+i%2))
	}
	pods := addPods(t, l, specs...)
	client := pods["client"].NetNS
	s := service{name: "web", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, leaving: map[string]bool{}}
	var all []*backend
	for i := range 2 * replaced {
		b := newBackend(t, pods[fmt.Sprintf("server-%d", i)], s.target)
		all = append(all, b)
		if i < replaced {
			s.endpoints = append(s.endpoints, b.pod)
		}
	}
	labtest.Apply(t, l, s.String())
	families := []string{"IPv4", "IPv6"}
	for _, family := range families {
		labtest.Eventually(t, 5*patience, "an answer", func() error { return exchange(client, s, family) })
	}

	stop := make(chan struct{})
	var load, connections sync.WaitGroup
	var made atomic.Int64
	var mu sync.Mutex
	failures := map[string]int{}
	load.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			connections.Go(func() {
				made.Add(1)
				if err := exchange(client, s, families[i%2]); err != nil {
					mu.Lock()
					failures[err.Error()]++
					mu.Unlock()
				}
			})
		}
	})
	for i := range 16 {
		c, err := dial(client, "udp", s.vip(families[i%2]), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		load.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					_, _ = c.Write([]byte("?")) // an ICMP error of before is no reason to end
				}
			}
		})
	}
	began := time.Now()
	removed := map[*backend]time.Time{}
	for i := range replaced {
		old, fresh := all[i], all[replaced+i]
		s.endpoints = append(slices.Clone(s.endpoints), fresh.pod)
		labtest.Apply(t, l, s.String())
		time.Sleep(300 * time.Millisecond) // the pace of the roll-out: a new pod is ready before an old one is told
		s.leaving[old.pod.Name] = true
		labtest.Apply(t, l, s.String())
		time.Sleep(300 * time.Millisecond)
		if old.number.Load() == 0 {
			t.Errorf("%s got no datagram while it was an endpoint", old.pod.Name)
		}
		s.endpoints = slices.DeleteFunc(slices.Clone(s.endpoints), func(p lab.Pod) bool { return p.Name == old.pod.Name })
		labtest.Apply(t, l, s.String())
		removed[old] = time.Now()
		time.Sleep(time.Second) // a pod stops well after its endpoint is gone, within its grace period
		old.tcp.Close()
	}
	time.Sleep(1500 * time.Millisecond) // what comes after a second would come now
	took := time.Since(began)
	close(stop)
	load.Wait()
	connections.Wait()
	if n := made.Load(); n < int64(100*took.Seconds())/int64(lab.Slow()) {
		t.Errorf("%d connections in %s: that is no load", n, took)
	}
	failed := 0
	for err, n := range failures {
		failed += n
		t.Errorf("%d of %d connections failed: %s", n, made.Load(), err)
	}
	// A machine that makes fewer connections than it was asked for is late with everything else, too.
	bound := max(time.Second, time.Duration(200*took.Seconds()/float64(made.Load())*float64(time.Second))) * lab.Slow()
	for old, at := range removed {
		after := time.Unix(0, old.last.Load()).Sub(at)
		t.Logf("%s: its last datagram came %s after its removal", old.pod.Name, after.Round(time.Millisecond))
		if after > bound {
			t.Errorf("%s: a datagram came %s after its removal, want none after %s", old.pod.Name, after.Round(time.Millisecond), bound)
		}
	}
	t.Logf("%d connections in %s, %d failed", made.Load(), took.Round(time.Millisecond), failed)
}

// exchange is one connection, a question and its answer.
func exchange(ns string, s service, family string) error {
	c, err := dial(ns, "tcp", s.vip(family), 0)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 8))
	return err
}
