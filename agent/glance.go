package agent

import (
	"context"
	"sync"
	"time"
)

// glance reads the datapath's flows for whoever asks what was dropped, at most once in a second: the list may be long,
// and ovs-vswitchd has other work.
type glance struct {
	read func(context.Context) (string, error)
	now  func() time.Time

	mu   sync.Mutex
	at   time.Time
	text string
}

// glanceInterval is the time between two reads.
const glanceInterval = time.Second

// megaflows returns what was read last, or reads anew.
func (g *glance) megaflows(ctx context.Context) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.now(); g.at.IsZero() || now.Sub(g.at) >= glanceInterval {
		text, err := g.read(ctx)
		if err != nil {
			return "", err
		}
		g.at, g.text = now, text
	}
	return g.text, nil
}
