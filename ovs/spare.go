package ovs

import (
	"context"
	"errors"
	"sync"
)

// spare is one ovs-ofctl that was started before it is needed. It has read its command line and waits
// for the bundle at its standard input; only then does it connect. Starting costs 20 ms on a busy
// machine (dynamic linking, mostly), what follows costs 2.
type spare struct {
	mu   sync.Mutex
	life context.Context // nil: nobody asked for one
	next chan started    // nil: none is under way
}

type started struct {
	process Process
	err     error
}

// maxSpare is the longest bundle for a spare, in bytes: what a pipe holds (pipe(7)), so that it is
// handed over whole or not at all whatever becomes of us. A longer one takes longer than a start.
const maxSpare = 64 << 10

// KeepReady has one ovs-ofctl wait for the next Apply, until ctx ends.
func (s *Switch) KeepReady(ctx context.Context) {
	s.spare.mu.Lock()
	s.spare.life = ctx
	s.spare.mu.Unlock()
	s.prepare()
}

// prepare starts the spare, unless there is one.
func (s *Switch) prepare() {
	s.spare.mu.Lock()
	defer s.spare.mu.Unlock()
	life := s.spare.life
	if life == nil || life.Err() != nil || s.spare.next != nil {
		return
	}
	next := make(chan started, 1)
	s.spare.next = next
	go func() {
		var it started
		path, err := s.exec.LookPath(ofctl)
		if err == nil {
			it.process, err = s.exec.Start(life, path, s.command("bundle", "-")...)
		}
		it.err = err
		next <- it
	}()
}

// applyBySpare applies a bundle by the spare. done is false when there was none, or it was lost.
func (s *Switch) applyBySpare(ctx context.Context, bundle string) (done bool, err error) {
	s.spare.mu.Lock()
	next := s.spare.next
	s.spare.next = nil
	s.spare.mu.Unlock()
	if next == nil {
		return false, nil
	}
	it := <-next
	if it.err != nil {
		return false, nil // whoever starts one now meets the same error, and reports it
	}
	_, errs, err := it.process.Finish(ctx, bundle)
	if errors.Is(err, errLost) {
		return false, nil
	}
	if err != nil {
		return true, s.failure("bundle", bundle, errs, err)
	}
	return true, nil
}
