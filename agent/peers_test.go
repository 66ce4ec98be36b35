package agent

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
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
	node := func(name, cidr, address string) flows.Node {
		return flows.Node{Name: name, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	w := &flows.World{Node: node("alpha", "198.18.1.0/24", "198.51.100.1"), MTU: 1450, Peers: map[string]flows.Node{"beta": node("beta", "198.18.2.0/24", "198.51.100.2")}}
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
