package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// bridge is the OpenFlow side of the bridge, as the loop uses it.
type bridge interface {
	Flows(ctx context.Context) ([]ovs.Installed, error)
	Groups(ctx context.Context) (string, error)
	Apply(ctx context.Context, bundle string) error
}

// loop keeps the flows of the bridge equal to what the World compiles to. It is one goroutine; whatever
// happens anywhere is only a kick that says why. Each pass looks at the World as it is now, compiles
// what differs from the World of the pass before, and applies the difference in one bundle. Kicks that
// arrive during a pass share the next one.
type loop struct {
	world  func() (*flows.World, error) // the error says what is not yet known; then nothing is applied
	bridge bridge
	log    logrus.FieldLogger
	seen   func(before, now *flows.World) // told about each World that was applied
	meter  *metrics
	// refusedFlow is told which flow Open vSwitch would not take; true if the next World does without it. nil never.
	refusedFlow func(before, now *flows.World, f flows.Flow, reason string) bool

	kicks    chan struct{}
	audits   chan struct{}
	readings chan *reading
	open     *reading // the one under way; the loop's goroutine alone uses it

	mu   sync.Mutex
	next wish // what the next pass is to do

	state   sync.Mutex
	desired *flows.Desired
	refused map[flows.Owner]error // owners that have no flows, and why
	without map[flows.Owner]bool  // those of them whose flows Open vSwitch would not take
	again   map[flows.Owner]bool  // to be compiled although nothing has changed
	// compiled is what desired was compiled from; last is what the bridge holds.
	compiled, last *flows.World
	applied        Applied
	failure        error
	beat           time.Time
}

// wish collects the kicks for one pass.
type wish struct {
	causes  []string
	readAll bool
	read    *reading // the table as it was read beside the loop
	waiting []chan error
}

// Applied describes a pass that changed the bridge.
type Applied struct {
	Added   int       `json:"added"`
	Deleted int       `json:"deleted"`
	Groups  int       `json:"groups"` // added, changed or deleted
	TookMS  float64   `json:"tookMilliseconds"`
	Cause   string    `json:"cause"`
	At      time.Time `json:"at"`
}

func newLoop(l *loop) *loop {
	l.kicks, l.audits, l.readings = make(chan struct{}, 1), make(chan struct{}, 1), make(chan *reading)
	l.desired, l.refused = flows.NewDesired(), map[flows.Owner]error{}
	l.without, l.again = map[flows.Owner]bool{}, map[flows.Owner]bool{}
	l.beat = time.Now()
	return l
}

// kick asks for a pass. It never blocks.
func (l *loop) kick(cause string) { l.ask(cause, false, nil) }

// readBack asks for a pass that compares the whole live table with what is wanted.
func (l *loop) readBack(cause string) { l.ask(cause, true, nil) }

func (l *loop) ask(cause string, readAll bool, done chan error) {
	l.mu.Lock()
	if len(l.next.causes) < 8 && !slices.Contains(l.next.causes, cause) {
		l.next.causes = append(l.next.causes, cause)
	}
	l.next.readAll = l.next.readAll || readAll
	if done != nil {
		l.next.waiting = append(l.next.waiting, done)
	}
	l.mu.Unlock()
	select {
	case l.kicks <- struct{}{}:
	default:
	}
}

// Apply implements attach.Flows: it returns once a pass that began after the call has brought the
// bridge in step, with OVS's reason if it could not.
func (l *loop) Apply(ctx context.Context, owners ...flows.Owner) error {
	causes := make([]string, len(owners))
	for i, o := range owners {
		causes[i] = string(o)
	}
	done := make(chan error, 1)
	l.ask(strings.Join(causes, " "), false, done)
	select {
	case err := <-done:
		return cmp.Or(err, l.refusedOf(owners))
	case <-ctx.Done():
		return fmt.Errorf("waiting for the flows of %s: %w", strings.Join(causes, " "), ctx.Err())
	}
}

// retryAfter is the pause before a failed pass is tried again by itself.
const retryAfter = 200 * time.Millisecond

// run makes passes until ctx ends. The first pass reads the whole table back.
func (l *loop) run(ctx context.Context) {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	for {
		var read *reading
		select {
		case <-ctx.Done():
			return
		case <-l.kicks:
		case <-l.audits:
			l.startReading(ctx)
			continue
		case read = <-l.readings:
			l.open = nil
			if read == nil {
				continue
			}
		case <-retry.C:
			l.readBack("retry")
		}
		l.mu.Lock()
		w := l.next
		l.next = wish{}
		l.mu.Unlock()
		if read != nil {
			w.read, w.causes = read, append(w.causes, "audit")
		}
		if len(w.causes) == 0 {
			continue
		}
		err := l.pass(ctx, w)
		for err != nil && ctx.Err() == nil && l.setAside(err) {
			err = l.pass(ctx, w)
		}
		if err != nil && ctx.Err() == nil {
			retry.Reset(retryAfter)
		}
		for _, done := range w.waiting {
			done <- err
		}
	}
}

// pass brings the bridge in step once.
func (l *loop) pass(ctx context.Context, w wish) error {
	began := time.Now()
	now, err := l.world()
	if err != nil {
		return l.finish(err)
	}
	l.state.Lock()
	before, failed := l.last, l.failure != nil
	l.state.Unlock()

	delta := l.compile(now)
	learn := w.readAll || before == nil
	switch {
	case w.readAll || failed || before == nil:
		live, groups, err := l.live(ctx)
		if err != nil {
			return l.finish(err)
		}
		full := l.differs(live, groups)
		if before != nil && !failed {
			l.repairing(driftOf(full, delta))
		}
		delta = full
	case w.read != nil:
		w.read.note(delta)
		drift := w.read.settled(l.differs(w.read.live, w.read.groups))
		l.repairing(driftOf(drift, flows.Delta{}))
		learn = !drift.Empty()
		delta = drift.Then(delta)
	}
	l.open.note(delta)
	if !delta.Empty() {
		err := l.bridge.Apply(ctx, delta.Bundle())
		l.meter.bundle(time.Since(began), err)
		if err != nil {
			return l.finish(fmt.Errorf("applying %d flows: %w", len(delta.Add)+len(delta.Delete), err))
		}
		if learn {
			if err := l.learn(ctx); err != nil {
				return l.finish(err)
			}
		}
	}
	l.report(delta, time.Since(began), strings.Join(w.causes, " "), before == nil)
	l.seen(before, now)
	l.state.Lock()
	l.last = now
	l.state.Unlock()
	return l.finish(nil)
}

// differs is what the live table lacks and what it has too much.
func (l *loop) differs(live []flows.Live, groups []flows.LiveGroup) flows.Delta {
	l.state.Lock()
	defer l.state.Unlock()
	d := l.desired.Diff(live)
	l.desired.DiffGroups(groups, &d)
	return d
}

// repairing tells how much of the table is somebody else's work.
func (l *loop) repairing(drift int) {
	if drift > 0 {
		l.meter.drift("flow", drift)
		l.log.WithField("flows", drift).Warn("the bridge did not hold what it should; repairing")
	}
}

// compile replaces what differs from the World that was compiled last. A pass that failed after compiling loses
// nothing: the next one reads the table back. An owner that cannot be compiled has no flows, and is named.
func (l *loop) compile(now *flows.World) flows.Delta {
	wanted := map[flows.Owner][]flows.Flow{}
	refused := map[flows.Owner]error{}
	l.state.Lock()
	owners := append(flows.Changed(l.compiled, now), slices.Collect(maps.Keys(l.again))...)
	clear(l.again)
	l.state.Unlock()
	for _, o := range owners {
		fs, err := flows.Compile(now, o)
		if err != nil {
			refused[o] = err
			l.log.WithField("owner", o).WithError(err).Error("no flows for this object")
		}
		wanted[o] = fs
	}
	l.state.Lock()
	defer l.state.Unlock()
	for o := range wanted {
		delete(l.refused, o)
		delete(l.without, o)
	}
	l.compiled = now
	maps.Copy(l.refused, refused)
	delta, err := l.desired.Replace(wanted)
	if err != nil {
		l.log.WithError(err).Error("two objects ask for the same flow")
	}
	return delta
}

// problems lists what keeps objects from getting the flows they ask for.
func (l *loop) problems() []string {
	l.state.Lock()
	defer l.state.Unlock()
	var out []string
	for _, o := range slices.Sorted(maps.Keys(l.refused)) {
		out = append(out, l.refused[o].Error())
	}
	return append(out, l.desired.Conflicts()...)
}

// learn reads the table back after a repair: what looks different even so is how this OVS prints it.
func (l *loop) learn(ctx context.Context) error {
	live, groups, err := l.live(ctx)
	if err != nil {
		return err
	}
	l.state.Lock()
	n := l.desired.Learn(live) + l.desired.LearnGroups(groups)
	l.state.Unlock()
	if n > 0 {
		l.log.WithField("flows", n).Info("this Open vSwitch prints some flows in other words than ours")
	}
	return nil
}

func (l *loop) live(ctx context.Context) ([]flows.Live, []flows.LiveGroup, error) {
	installed, err := l.bridge.Flows(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the flows of the bridge: %w", err)
	}
	text, err := l.bridge.Groups(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the groups of the bridge: %w", err)
	}
	groups, err := flows.ParseGroups(text)
	if err != nil {
		return nil, nil, err
	}
	return ovs.Live(installed), groups, nil
}

// driftOf counts what a full comparison wants beyond what the change itself wants: somebody else's work.
func driftOf(full, expected flows.Delta) int {
	return beyond(full.Add, expected.Add, func(f flows.Flow) uint64 { return f.Cookie }) +
		beyond(full.Delete, expected.Delete, func(c uint64) uint64 { return c }) +
		beyond(full.AddGroups, expected.AddGroups, func(g *flows.Group) flows.GroupID { return g.ID }) +
		beyond(full.DeleteGroups, expected.DeleteGroups, func(id flows.GroupID) flows.GroupID { return id })
}

// beyond counts those of all whose key none of expected has.
func beyond[T any, K comparable](all, expected []T, key func(T) K) (n int) {
	known := make(map[K]bool, len(expected))
	for _, x := range expected {
		known[key(x)] = true
	}
	for _, x := range all {
		if !known[key(x)] {
			n++
		}
	}
	return n
}

func (l *loop) report(d flows.Delta, took time.Duration, cause string, first bool) {
	a := Applied{Added: len(d.Add), Deleted: len(d.Delete), Groups: len(d.AddGroups) + len(d.DeleteGroups), TookMS: float64(took.Microseconds()) / 1000, Cause: cause, At: time.Now()}
	entry := l.log.WithFields(logrus.Fields{
		"added": a.Added, "deleted": a.Deleted, "groups": a.Groups, "took": took.Round(time.Millisecond), "cause": cause,
	})
	if !first && d.Empty() {
		entry.Debug("flows checked")
		return
	}
	entry.Info("flows applied")
	l.state.Lock()
	l.applied = a
	l.state.Unlock()
}

func (l *loop) finish(err error) error {
	l.state.Lock()
	changed := (err == nil) != (l.failure == nil) || err != nil && l.failure != nil && err.Error() != l.failure.Error()
	l.failure = err
	l.beat = time.Now()
	starting := l.last == nil
	l.state.Unlock()
	switch {
	case err == nil || !changed:
	case starting:
		l.log.WithField("for", err).Info("the flows wait")
	default:
		l.log.WithError(err).Warn("the flows are not in step; trying again")
	}
	return err
}

// ready says why the bridge is not in step, or nil.
func (l *loop) ready() error {
	l.state.Lock()
	defer l.state.Unlock()
	if l.failure != nil {
		return l.failure
	}
	if l.last == nil {
		return errors.New("no flows have been applied yet")
	}
	return nil
}

// silence is the time since the end of the last pass, good or bad; since the start if there was none.
func (l *loop) silence() time.Duration {
	l.state.Lock()
	defer l.state.Unlock()
	return time.Since(l.beat)
}

// view lends the compiled state to a reader. It must neither keep nor change it.
func (l *loop) view(read func(d *flows.Desired, w *flows.World, a Applied)) {
	l.state.Lock()
	defer l.state.Unlock()
	read(l.desired, l.last, l.applied)
}
