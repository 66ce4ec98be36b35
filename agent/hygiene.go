package agent

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// flushTimeout bounds one clean-up of the connection tracker.
const flushTimeout = 10 * time.Second

// hygiene makes the connection tracker forget connections to endpoints and Services that are gone. It is one
// goroutine: the loop does not wait for it.
type hygiene struct {
	daemon func() (*ovs.Daemon, error)
	log    logrus.FieldLogger
	work   chan []flows.StaleConnections
}

// hygieneQueue is how many changes may wait.
const hygieneQueue = 64

func newHygiene(h *hygiene) *hygiene {
	h.work = make(chan []flows.StaleConnections, hygieneQueue)
	return h
}

// follow takes over what a change of the World has made stale.
func (h *hygiene) follow(ctx context.Context, before, now *flows.World) {
	if before == nil {
		return
	}
	if stale := flows.Stale(before.Services, now.Services); len(stale) > 0 {
		select {
		case h.work <- stale:
		case <-ctx.Done():
		}
	}
}

func (h *hygiene) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case stale := <-h.work:
			flush, cancel := context.WithTimeout(ctx, flushTimeout)
			err := h.flush(flush, stale)
			cancel()
			if err != nil && ctx.Err() == nil {
				h.log.WithError(err).Warn("connections to endpoints that are gone could not be forgotten; they end by their time-out")
			}
		}
	}
}

// flush forgets connections. Before, it waits until no megaflow of the time before the change is left: it would
// translate to the gone endpoint again.
func (h *hygiene) flush(ctx context.Context, stale []flows.StaleConnections) error {
	d, err := h.daemon()
	if err != nil {
		return err
	}
	return d.AfterRevalidation(ctx, func(ctx context.Context) error {
		for _, s := range stale {
			if err := d.FlushConntrack(ctx, ovs.Connections{
				Zone: flows.ZoneService, Protocol: flows.ProtocolNumber(s.Protocol), To: s.Frontend, From: s.Endpoint,
			}); err != nil {
				return err
			}
		}
		h.log.WithField("selections", len(stale)).Debug("connections to what is gone forgotten")
		return nil
	})
}
