package agent

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// hygiene compares the connections that the zone of Services tracks with what Services say, whenever those change and
// at the start: those that lead where nobody is to be led any more are forgotten, and the addresses of
// those that go on without their endpoint being one linger. It is one goroutine; the loop does not wait for it.
type hygiene struct {
	daemon    func() (*ovs.Daemon, error)
	dial      func(ctx context.Context) (*ovs.Daemon, error) // another connection to it
	source    source.Source
	lingering *lingering
	changed   func() // what lingers is not what it was
	log       logrus.FieldLogger

	kicks chan struct{}
	world atomic.Pointer[flows.World] // in force now
	began bool                        // of the loop's goroutine alone
}

func newHygiene(h *hygiene) *hygiene {
	h.kicks = make(chan struct{}, 1)
	return h
}

const (
	// hygieneWithin bounds each question to ovs-vswitchd.
	hygieneWithin = 10 * time.Second
	// hygieneShare is how much longer than judging the pause after it is: ovs-vswitchd does nothing else while it lists
	// connections.
	hygieneShare = 4
	// lingerInterval is how often what lingers is looked at though nothing has changed: connections end silently.
	lingerInterval = 30 * time.Second
	// fewConnections are forgotten one by one, each in no time; more by what they have in common, which makes
	// ovs-vswitchd look at all that there are.
	fewConnections = 64
)

// follow takes over the World that has just come into force.
func (h *hygiene) follow(before, now *flows.World) {
	h.world.Store(now)
	if before == nil || before.Services != now.Services || len(now.Lingering) > 0 {
		h.kick()
	}
}

// podGone is told that a pod has ended: connections that linger may have ended with it.
func (h *hygiene) podGone() {
	if len(h.lingering.addresses()) > 0 {
		h.kick()
	}
}

func (h *hygiene) kick() {
	select {
	case h.kicks <- struct{}{}:
	default:
	}
}

// begin finds out, before the first flows are written, what lingers from before this agent. Without it the answers of
// endpoints that left while no agent ran would stop.
func (h *hygiene) begin(w *flows.World) error {
	if h.began || w.Services == nil {
		return nil
	}
	d, err := h.daemon()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), hygieneWithin)
	defer cancel()
	known := flows.NewConnections(w)
	err = h.each(ctx, d, func(_ entry, x flows.Connection) {
		if known.Lingers(x) {
			h.lingering.add(x.Endpoint.Addr())
		}
	})
	if err != nil {
		h.log.WithError(err).Warn("which connections outlive their endpoints could not be read; answers of such may be lost")
	}
	h.began = true
	return nil
}

// look is one comparison. Until the datapath has followed a change, packets may still open connections by the flows of
// before, so connections are judged three times: at once, and after each of two waits for the revalidators. The
// first of those may have begun before the change, the second has not: what is not found then is gone for good.
type look struct {
	world *flows.World
	marks map[netip.Addr]uint64
	waits int
}

// run judges connections whenever it is kicked, until ctx ends. A look that fails is repeated.
func (h *hygiene) run(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	again.Stop()
	waited, waiting := make(chan error, 1), false
	var now *look // under way
	more := false // the World has changed since it began
	for {
		var failed error
		select {
		case <-ctx.Done():
			return
		case <-h.kicks:
			more = true
		case <-again.C:
			more = true
		case failed = <-waited:
			waiting = false
			if now != nil {
				now.waits++
			}
		}
		began := time.Now()
		connected, err := h.judge(ctx)
		busy := time.Since(began)
		err = errors.Join(failed, err)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			h.log.WithError(err).Warn("connections to endpoints that are gone could not be forgotten; trying again")
			now = nil
			again.Reset(time.Second)
		case now != nil && now.waits >= 2:
			if h.lingering.settle(now.marks, now.world.Lingering, connected) {
				h.changed()
			}
			now = nil
			if len(h.lingering.addresses()) > 0 {
				again.Reset(lingerInterval)
			}
		}
		if now == nil && more && err == nil {
			more = false
			if w := h.world.Load(); w != nil && w.Services != nil {
				now = &look{world: w, marks: h.lingering.marks()}
			}
		}
		if now != nil && !waiting {
			waiting = true
			go func() { waited <- h.wait(ctx) }()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(hygieneShare*busy, hygieneWithin)):
		}
	}
}

// wait returns after a round of the revalidators. It has a connection of its own: ovs-vswitchd answers no other question on
// it meanwhile.
func (h *hygiene) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, hygieneWithin)
	defer cancel()
	d, err := h.dial(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.Call(ctx, "revalidator/wait")
	return err
}

// judge goes through the connections that there are now, forgets those that have to be, and returns to which addresses
// connections go on that are endpoints no more.
func (h *hygiene) judge(ctx context.Context) (connected map[netip.Addr]bool, err error) {
	w := h.world.Load()
	if w == nil || w.Services == nil {
		return nil, nil
	}
	d, err := h.daemon()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, hygieneWithin)
	defer cancel()
	known, alive := flows.NewConnections(w), h.alive(w)
	connected = map[netip.Addr]bool{}
	gone := map[flows.Connection][]entry{}
	err = h.each(ctx, d, func(e entry, x flows.Connection) {
		switch {
		case known.Ended(x, alive):
			gone[x] = append(gone[x], e)
		case known.Lingers(x):
			connected[x.Endpoint.Addr()] = true
		}
	})
	ended := 0
	for x, list := range gone {
		if err == nil {
			err = forget(ctx, d, x, list)
			ended += len(list)
		}
	}
	if ended > 0 {
		h.log.WithField("connections", ended).Info("forgot connections to endpoints or Services that are gone")
	}
	return connected, err
}

// forget deletes connections of one kind.
func forget(ctx context.Context, d *ovs.Daemon, x flows.Connection, list []entry) error {
	if len(list) > fewConnections {
		return d.FlushConntrack(ctx, ovs.Connections{
			Zone: flows.ZoneService, Protocol: flows.ProtocolNumber(x.Frontend.Protocol), To: x.Frontend.At, From: x.Endpoint,
		})
	}
	for _, e := range list {
		if err := d.ForgetConnection(ctx, flows.ZoneService, e.selector()); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for every connection of the zone.
func (h *hygiene) each(ctx context.Context, d *ovs.Daemon, f func(entry, flows.Connection)) error {
	entries, err := entriesOf(ctx, d, flows.ZoneService)
	if err != nil {
		return err
	}
	for e := range entries {
		if x, ok := e.connection(); ok {
			f(e, x)
		}
	}
	return nil
}

// connection is an entry as Services see it; ok is false for one without ports.
func (e entry) connection() (x flows.Connection, ok bool) {
	if flows.ProtocolNumber(e.protocol) == 0 || e.tuple.Port == 0 {
		return x, false
	}
	at, err := netip.ParseAddr(e.reply["src"])
	port, err2 := strconv.ParseUint(e.reply["sport"], 10, 16)
	if err != nil || err2 != nil {
		return x, false
	}
	return flows.Connection{
		Frontend: flows.Frontend{Protocol: e.protocol, At: netip.AddrPortFrom(e.tuple.Destination, e.tuple.Port)},
		Endpoint: netip.AddrPortFrom(at, uint16(port)), Moved: e.fields["sport"] != e.reply["dport"],
	}, true
}

// alive tells of an address whether somebody may still have it: a pod that has not ended, a node, or who is no pod at all.
// What is asked for is looked up once.
func (h *hygiene) alive(w *flows.World) func(netip.Addr) bool {
	var pods map[netip.Addr]bool
	return func(a netip.Addr) bool {
		if w.Services.Leads(a) || !w.InPodCIDR(a) {
			return true
		}
		if pods == nil {
			pods = h.pods(w)
		}
		return pods[a]
	}
}

// pods are the addresses of all pods that there are.
func (h *hygiene) pods(w *flows.World) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, list := range w.Pods {
		for _, a := range list {
			for _, addr := range a.Addresses {
				out[addr] = true
			}
		}
	}
	for _, key := range h.source.Keys("Pod") {
		if p, ok := h.source.Get(key).(*policy.Pod); ok && p != nil {
			for _, a := range p.Addresses {
				out[a] = true
			}
		}
	}
	return out
}
