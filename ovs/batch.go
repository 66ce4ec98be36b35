package ovs

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// batcher merges changes into few transactions, because ovs-vswitchd reconfigures itself once for
// each: who arrives while one is under way shares the next. Under way means until ovs-vswitchd has
// caught up with it, which would not look at the next any sooner. There is no timer, so a lonely change
// waits for nothing.
type batcher struct {
	commit func(context.Context, *txn) error
	// pace, if not nil, returns when ovs-vswitchd has acted on what was committed.
	pace    func(context.Context)
	mu      sync.Mutex
	waiting []*member
	running bool
}

// member is one change that may share a transaction with others.
type member struct {
	ctx context.Context
	// names are the ports it touches. Two members with a name in common go into different
	// transactions, in the order of their arrival: the second must see what the first did.
	names []string
	// build adds the operations, looking at the rows as they are now.
	build func(*txn) error
	done  chan error
}

// commitTimeout bounds one merged transaction, which belongs to no single caller.
const commitTimeout = 10 * time.Second

// do returns when the change is committed, or its ctx ends; then it may still be committed.
func (b *batcher) do(ctx context.Context, names []string, build func(*txn) error) error {
	m := &member{ctx: ctx, names: names, build: build, done: make(chan error, 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, m)
	if !b.running {
		b.running = true
		go b.run(context.WithoutCancel(ctx))
	}
	b.mu.Unlock()
	select {
	case err := <-m.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run commits until nobody waits.
func (b *batcher) run(ctx context.Context) {
	for {
		b.mu.Lock()
		var now []*member
		now, b.waiting = share(b.waiting)
		b.running = len(now) > 0
		b.mu.Unlock()
		if len(now) == 0 {
			return
		}
		b.together(ctx, now)
		if b.pace != nil {
			b.pace(ctx)
		}
	}
}

// share takes those of the waiting whose names do not collide, and leaves the rest in order.
func share(waiting []*member) (now, later []*member) {
	taken := map[string]bool{}
	for _, m := range waiting {
		if slices.ContainsFunc(m.names, func(n string) bool { return taken[n] }) {
			later = append(later, m)
		} else {
			now = append(now, m)
		}
		for _, n := range m.names {
			taken[n] = true
		}
	}
	return now, later
}

// together commits the members in one transaction and, when the server refuses it, each alone, so
// that a bad one does not hurt the others.
func (b *batcher) together(ctx context.Context, members []*member) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	t := &txn{}
	var in []*member
	for _, m := range members {
		before := len(t.ops)
		err := m.ctx.Err()
		if err == nil {
			err = m.build(t)
		}
		if err != nil {
			t.ops = t.ops[:before]
			m.done <- err
			continue
		}
		in = append(in, m)
	}
	err := b.commit(ctx, t)
	if len(in) > 1 && errors.As(err, new(rejected)) {
		for _, m := range in {
			b.together(ctx, []*member{m})
		}
		return
	}
	for _, m := range in {
		m.done <- err
	}
}
