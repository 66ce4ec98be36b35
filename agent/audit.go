package agent

import (
	"context"

	"github.com/twill-net/twill/flows"
)

// reading is the live table as it was read beside the loop, which goes on meanwhile: with tens of thousands of
// flows that takes seconds, and no pod and no policy shall wait for it. What the loop sends to the bridge while the
// table is read may be in the reading or not, so nothing is concluded about that; the next audit sees it.
// Only the loop's goroutine uses sent and sentGroups.
type reading struct {
	live       []flows.Live
	groups     []flows.LiveGroup
	sent       map[uint64]bool
	sentGroups map[flows.GroupID]bool
}

// audit asks for the live table to be read beside the loop, and then for a pass that compares it with what is wanted.
func (l *loop) audit() {
	select {
	case l.audits <- struct{}{}:
	default: // asked for already
	}
}

// startReading reads the table, unless that is under way. Where it cannot be read the loop tries by itself,
// and says so.
func (l *loop) startReading(ctx context.Context) {
	if l.open != nil {
		return
	}
	r := &reading{sent: map[uint64]bool{}, sentGroups: map[flows.GroupID]bool{}}
	l.open = r
	go func() {
		var err error
		r.live, r.groups, err = l.live(ctx)
		if err != nil {
			l.readBack("audit")
			r = nil
		}
		select {
		case l.readings <- r:
		case <-ctx.Done():
		}
	}()
}

// note remembers what is about to be sent while a reading is open.
func (r *reading) note(d flows.Delta) {
	if r == nil {
		return
	}
	for _, f := range d.Add {
		r.sent[f.Cookie] = true
	}
	for _, c := range d.Delete {
		r.sent[c] = true
	}
	for _, g := range d.AddGroups {
		r.sentGroups[g.ID] = true
	}
	for _, id := range d.DeleteGroups {
		r.sentGroups[id] = true
	}
}

// settled is the part of a difference that nothing sent meanwhile explains.
func (r *reading) settled(d flows.Delta) flows.Delta {
	return flows.Delta{
		Add:          without(d.Add, func(f flows.Flow) bool { return r.sent[f.Cookie] }),
		Delete:       without(d.Delete, func(c uint64) bool { return r.sent[c] }),
		AddGroups:    without(d.AddGroups, func(g *flows.Group) bool { return r.sentGroups[g.ID] }),
		DeleteGroups: without(d.DeleteGroups, func(id flows.GroupID) bool { return r.sentGroups[id] }),
	}
}

func without[T any](all []T, drop func(T) bool) (kept []T) {
	for _, x := range all {
		if !drop(x) {
			kept = append(kept, x)
		}
	}
	return kept
}
