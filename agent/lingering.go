package agent

import (
	"maps"
	"net/netip"
	"sync"

	"github.com/twill-net/twill/flows"
)

// lingering keeps the addresses that are endpoints no more but may still have connections. What is in it follows from
// the connection tracker, as hygiene reads it; an address that has just left is in it until a look at the
// tracker, after the flows have changed, has shown that nothing leads there.
type lingering struct {
	mu    sync.Mutex
	since map[netip.Addr]uint64 // the turn at which it was put here last
	turn  uint64
	now   map[netip.Addr]bool // a copy that nobody changes
}

func newLingering() *lingering { return &lingering{since: map[netip.Addr]uint64{}} }

// left takes in the endpoints that Services no longer have.
func (l *lingering) left(before, now *flows.Services) {
	l.add(flows.EndpointsLeft(before, now)...)
}

func (l *lingering) add(list ...netip.Addr) {
	if len(list) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	for _, a := range list {
		l.since[a] = l.turn
	}
	l.copy()
}

func (l *lingering) copy() {
	l.now = make(map[netip.Addr]bool, len(l.since))
	for a := range l.since {
		l.now[a] = true
	}
}

// addresses are those that linger. Do not change the map.
func (l *lingering) addresses() map[netip.Addr]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// marks say of each at which turn it was put here.
func (l *lingering) marks() map[netip.Addr]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.since)
}

// settle leaves out what was in force, has not come again since the marks were read, and has no connection.
func (l *lingering) settle(marks map[netip.Addr]uint64, inForce, connected map[netip.Addr]bool) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, turn := range marks {
		if inForce[a] && !connected[a] && l.since[a] == turn {
			delete(l.since, a)
			changed = true
		}
	}
	for a := range connected {
		if _, known := l.since[a]; !known {
			l.turn++
			l.since[a], changed = l.turn, true
		}
	}
	if changed {
		l.copy()
	}
	return changed
}
