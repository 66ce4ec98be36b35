package attach

import "sync"

// unlinker deletes host ends. Those that arrive while a deletion is under way share the next one, which
// takes the kernel about as long for many as for one.
type unlinker struct {
	links Links

	mu      sync.Mutex
	next    *unlinking
	running bool
}

// unlinking is one deletion.
type unlinking struct {
	names []string
	err   error
	done  chan struct{}
}

// delete returns when the link is gone.
func (u *unlinker) delete(name string) error {
	u.mu.Lock()
	if u.next == nil {
		u.next = &unlinking{done: make(chan struct{})}
	}
	mine := u.next
	mine.names = append(mine.names, name)
	if !u.running {
		u.running = true
		go u.run()
	}
	u.mu.Unlock()
	<-mine.done
	if mine.err != nil && len(mine.names) > 1 {
		return u.links.DeleteVeths(name) // perhaps it was another one's error
	}
	return mine.err
}

// run deletes until nobody waits.
func (u *unlinker) run() {
	for {
		u.mu.Lock()
		now := u.next
		u.next = nil
		u.running = now != nil
		u.mu.Unlock()
		if now == nil {
			return
		}
		now.err = u.links.DeleteVeths(now.names...)
		close(now.done)
	}
}
