package agent

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
)

// TestAPeerThatOnlySmallPacketsReachIsNarrow: after two large packets in a row that were not answered, and until one is.
func TestAPeerThatOnlySmallPacketsReachIsNarrow(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	widest, up := 1400, true
	p := newPeers(&peers{interval: time.Hour, log: log, probe: func(_ context.Context, _, _ netip.Addr, size int) (time.Duration, error) {
		if !up || size > widest {
			return 0, errors.New("no answer")
		}
		return time.Millisecond, nil
	}})
	w := &flows.World{Node: testNode("alpha", "198.18.1.0/24", "198.51.100.1"), MTU: 1450, Peers: map[string]flows.Node{"beta": testNode("beta", "198.18.2.0/24", "198.51.100.2")}}
	w.Tunnel.Local = w.Node.Addresses[0]
	p.follow(nil, w)
	look := func() PeerStatus {
		t.Helper()
		p.round(t.Context(), func(PeerStatus) bool { return true })
		return p.list()[0]
	}
	if s := look(); s.Reachable == nil || !*s.Reachable || s.MTU != 0 || s.Narrow || s.Problem != "" {
		t.Errorf("once is no proof: %+v", s)
	}
	if s := look(); !*s.Reachable || s.MTU != 0 || !s.Narrow || !strings.Contains(s.Problem, "small packets pass, those of 1450 bytes do not") {
		t.Errorf("twice: %+v", s)
	}
	widest = 1450
	if s := look(); s.MTU != 1450 || s.Narrow || s.Problem != "" {
		t.Errorf("healed: %+v", s)
	}
	wide := *w
	wide.MTU = 8950
	p.follow(w, &wide)
	look()
	if s := look(); s.MTU != 0 || !s.Narrow || !strings.Contains(s.Problem, "8950") {
		t.Errorf("with a larger MTU: %+v", s)
	}
	up = false
	if s := look(); *s.Reachable || s.Narrow || s.MTU != 0 {
		t.Errorf("down: %+v", s)
	}
}

// TestAPeerThatStopsAnsweringIsProbedAgainSoon, so that what a probe that fails has set going is made use of, and after a while
// as seldom as any other.
func TestAPeerThatStopsAnsweringIsProbedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		var answers atomic.Bool
		var probes atomic.Int32
		p := newPeers(&peers{interval: 30 * time.Second, log: log, probe: func(context.Context, netip.Addr, netip.Addr, int) (time.Duration, error) {
			probes.Add(1)
			if !answers.Load() {
				return 0, errors.New("no answer")
			}
			return time.Millisecond, nil
		}})
		w := &flows.World{Node: testNode("alpha", "198.18.1.0/24", "198.51.100.1"), Peers: map[string]flows.Node{"beta": testNode("beta", "198.18.2.0/24", "198.51.100.2")}}
		w.Tunnel.Local = w.Node.Addresses[0]
		p.follow(nil, w)
		go p.run(t.Context())
		after := func(d time.Duration, up bool, what string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if s := p.list()[0]; s.Reachable == nil || *s.Reachable != up {
				t.Errorf("%s: %+v", what, s)
			}
		}
		answers.Store(true)
		after(time.Minute+time.Second, true, "a peer that answers")
		answers.Store(false)
		after(30*time.Second, false, "one that has stopped answering")
		answers.Store(true)
		after(2*time.Second, true, "one that would answer the next probe")

		answers.Store(false)
		after(2*time.Minute, false, "one that stays away")
		before := probes.Load()
		after(3*time.Minute, false, "one that stays away")
		if n := probes.Load() - before; n != 2*6 { // each probe that fails is tried twice
			t.Errorf("one that stays away was probed %d times in three minutes, want twice each half minute", n)
		}
	})
}

func testNode(name, cidr, address string) flows.Node {
	return flows.Node{Name: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
}
