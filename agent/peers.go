package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
)

// PeerStatus is what is known of the way to one peer.
type PeerStatus struct {
	Node string `json:"node"`
	// Tunnel is the address of its end of the tunnel; Probed is the gateway address that answers for it
	// through the tunnel.
	Tunnel netip.Addr `json:"tunnel"`
	Probed netip.Addr `json:"probed"`
	// Reachable is the outcome of the last probe, nil before the first one.
	Reachable *bool     `json:"reachable"`
	RTTMS     float64   `json:"rttMilliseconds"`
	Last      time.Time `json:"lastProbed"`
	Problem   string    `json:"problem,omitempty"`
	// MTU is the largest IP packet in bytes, that of pods, which was seen to pass both ways at the last probe; 0 if
	// none was. Narrow is true when small packets pass and those do not.
	MTU    int  `json:"verifiedMTU"`
	Narrow bool `json:"narrow,omitempty"`

	unfit    int                 // large probes in a row that were not answered
	gateways map[bool]netip.Addr // by "is IPv4"
	changed  time.Time           // when it appeared, or stopped answering
}

// peers probes every peer through the tunnel, from gateway to gateway. That proves the way there and
// back with real packets, and keeps the underlay's neighbour entries warm: userspace OVS drops the first
// packet to a peer whose MAC address it has to ask for.
type peers struct {
	probe func(ctx context.Context, from, to netip.Addr, size int) (time.Duration, error)
	// teach repairs what Open vSwitch knows of the way to a peer that does not answer; true if it was wrong. nil: nothing to do.
	teach    func(ctx context.Context, tunnel netip.Addr) (bool, error)
	interval time.Duration
	log      logrus.FieldLogger

	news chan struct{}

	mu      sync.Mutex
	self    flows.Node
	local   netip.Addr
	mtu     int
	status  map[string]*PeerStatus
	since   time.Time // when the first World became known
	settled bool      // the peers of the start have been tried, or waited for long enough
}

// probeParallel bounds how many peers are waited for at once, probeTimeout how long for each. The first
// packet to a peer may only make OVS ask for its MAC address, so after askTime a second one follows.
// settleTime bounds how long readiness waits for the first round.
const (
	probeParallel = 32
	probeTimeout  = time.Second
	askTime       = 50 * time.Millisecond
	settleTime    = 2 * time.Second
)

// A peer that has only just appeared, and whose own agent may still be on its way, is probed more often; so is one that has
// only just stopped answering, since what is repaired when a probe fails may take another one: the MAC address that
// Open vSwitch lacks the kernel may have to ask for first.
const (
	restlessTime     = 30 * time.Second
	restlessInterval = time.Second
)

func newPeers(p *peers) *peers {
	p.news = make(chan struct{}, 1)
	p.status = map[string]*PeerStatus{}
	return p
}

// follow takes over the peers of a World that has been applied, and logs who came, changed or went.
func (p *peers) follow(before, now *flows.World) {
	known := map[string]flows.Node{}
	if before != nil {
		known = before.Peers
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.self, p.local, p.mtu = now.Node, now.Tunnel.Local, now.MTU
	if p.since.IsZero() {
		p.since = time.Now()
	}
	fresh := false
	for _, name := range slices.Sorted(maps.Keys(now.Peers)) {
		n := now.Peers[name]
		old, had := known[name]
		entry := p.log.WithFields(logrus.Fields{"peer": name, "podCIDRs": n.PodCIDRs, "addresses": n.Addresses})
		switch {
		case !had:
			entry.Info("peer added")
		case !old.Equal(n):
			entry.Info("peer changed")
		default:
			continue
		}
		tunnel, _ := n.TunnelAddress(p.local)
		s := &PeerStatus{Node: name, Tunnel: tunnel, gateways: map[bool]netip.Addr{}, changed: time.Now()}
		for _, c := range n.PodCIDRs {
			s.gateways[c.Addr().Is4()] = flows.Gateway(c)
		}
		p.status[name] = s
		fresh = true
	}
	for name := range known {
		if _, ok := now.Peers[name]; !ok {
			p.log.WithField("peer", name).Info("peer gone")
			delete(p.status, name)
		}
	}
	if fresh {
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
}

// run probes new peers at once and all peers each interval.
func (p *peers) run(ctx context.Context) {
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	restless := time.NewTicker(restlessInterval)
	defer restless.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.news:
			p.round(ctx, func(s PeerStatus) bool { return s.Reachable == nil })
		case <-restless.C:
			p.round(ctx, func(s PeerStatus) bool {
				return time.Since(s.changed) < restlessTime && (s.Reachable == nil || !*s.Reachable)
			})
		case <-tick.C:
			p.round(ctx, func(PeerStatus) bool { return true })
		}
	}
}

func (p *peers) round(ctx context.Context, which func(PeerStatus) bool) {
	var wg sync.WaitGroup
	room := make(chan struct{}, probeParallel)
	for _, s := range p.list() {
		if !which(s) {
			continue
		}
		from, to, ok := p.path(s.Node)
		if !ok {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			p.one(ctx, s.Node, from, to)
		})
	}
	wg.Wait()
}

// path is the pair of gateway addresses, of one family, between which a peer is probed.
func (p *peers) path(name string) (from, to netip.Addr, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status[name]
	if s == nil {
		return from, to, false
	}
	for _, mine := range p.self.PodCIDRs {
		if to, ok := s.gateways[mine.Addr().Is4()]; ok {
			return flows.Gateway(mine), to, true
		}
	}
	s.Problem = "no podCIDR of a family that this node has too"
	return from, to, false
}

// ask probes up to twice.
func (p *peers) ask(ctx context.Context, from, to netip.Addr, size int) (rtt time.Duration, err error) {
	for _, patience := range []time.Duration{askTime, probeTimeout} {
		attempt, cancel := context.WithTimeout(ctx, patience)
		rtt, err = p.probe(attempt, from, to, size)
		cancel()
		if err == nil || ctx.Err() != nil {
			return rtt, err
		}
	}
	return rtt, err
}

// allTried says which peer of the start has not been probed yet, for a bounded time: after that, and for
// peers that come later, nobody waits. A pod's first packet to a peer finds the way already warm.
func (p *peers) allTried() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled {
		return nil
	}
	if p.since.IsZero() {
		return errors.New("no peer is known yet")
	}
	for _, name := range slices.Sorted(maps.Keys(p.status)) {
		if s := p.status[name]; s.Reachable == nil && s.Problem == "" && time.Since(p.since) < settleTime {
			return fmt.Errorf("node %s has not been probed through the tunnel yet", name)
		}
	}
	p.settled = true
	return nil
}

func (p *peers) one(ctx context.Context, name string, from, to netip.Addr) {
	rtt, err := p.ask(ctx, from, to, 0)
	if err != nil && p.repair(ctx, name) {
		rtt, err = p.ask(ctx, from, to, 0)
	}
	p.mu.Lock()
	mtu := p.mtu
	p.mu.Unlock()
	fits := false
	if err == nil && mtu > 0 {
		_, large := p.ask(ctx, from, to, mtu)
		fits = large == nil
	}
	if ctx.Err() != nil {
		return // the agent ends; that says nothing about the peer
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status[name]
	if s == nil {
		return
	}
	was := s.Reachable
	good := err == nil
	s.Reachable, s.Probed, s.Last, s.Problem = &good, to, time.Now(), ""
	entry := p.log.WithFields(logrus.Fields{"peer": name, "tunnel": s.Tunnel, "probed": to})
	if good {
		s.RTTMS = float64(rtt.Microseconds()) / 1000
		if was == nil || !*was {
			entry.WithField("rtt", rtt).Info("peer up")
		}
		s.fit(fits, mtu, entry)
		return
	}
	s.MTU, s.Narrow, s.unfit = 0, false, 0
	s.Problem = err.Error()
	if was != nil && *was {
		s.changed = time.Now()
	}
	if was == nil || *was {
		entry.WithError(err).Warn("peer does not answer through the tunnel")
	}
}

// repair is true when something was repaired on the way to a peer, so that it may answer now.
func (p *peers) repair(ctx context.Context, name string) bool {
	p.mu.Lock()
	s := p.status[name]
	p.mu.Unlock()
	if p.teach == nil || s == nil || !s.Tunnel.IsValid() || ctx.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	taught, err := p.teach(ctx, s.Tunnel)
	entry := p.log.WithFields(logrus.Fields{"peer": name, "tunnel": s.Tunnel})
	switch {
	case err != nil:
		entry.WithError(err).Debug("what Open vSwitch knows of the way to the peer cannot be looked at")
	case taught:
		entry.Warn("Open vSwitch did not know the MAC address on the way to the peer; told it what the kernel knows")
	}
	return taught
}

// unfitOften is how many large probes in a row have to stay without an answer before a peer counts as narrow.
const unfitOften = 2

// fit takes in whether a packet of the MTU has passed both ways.
func (s *PeerStatus) fit(fits bool, mtu int, log logrus.FieldLogger) {
	was := s.Narrow
	switch {
	case mtu == 0:
		return
	case fits:
		s.MTU, s.Narrow, s.unfit = mtu, false, 0
		if was {
			log.WithField("mtu", mtu).Info("packets of the MTU pass again")
		}
		return
	}
	s.MTU = 0
	if s.unfit++; s.unfit < unfitOften {
		return
	}
	s.Narrow = true
	s.Problem = fmt.Sprintf("small packets pass, those of %d bytes do not", mtu)
	if !was {
		log.WithField("mtu", mtu).Warn("packets of the MTU do not pass through the tunnel; a link between the nodes has a smaller MTU")
	}
}

// list returns the status of all peers, by name.
func (p *peers) list() []PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]PeerStatus, 0, len(p.status))
	for _, name := range slices.Sorted(maps.Keys(p.status)) {
		out = append(out, *p.status[name])
	}
	return out
}
