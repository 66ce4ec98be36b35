package host

import "sync"

// Unlinker deletes pairs for callers that come one by one. Those that arrive while a deletion is under
// way share the next one. The zero value works; it must not be copied once it is used.
type Unlinker struct {
	mu      sync.Mutex
	next    *unlinking
	running bool
}

// unlinking is one deletion.
type unlinking struct {
	hosts []string
	err   error
	gone  chan struct{}
}

// DeleteVeth is DeleteVeths for one, in company if there is any.
func (u *Unlinker) DeleteVeth(host string) error {
	u.mu.Lock()
	if u.next == nil {
		u.next = &unlinking{gone: make(chan struct{})}
	}
	mine := u.next
	mine.hosts = append(mine.hosts, host)
	if !u.running {
		u.running = true
		go u.run()
	}
	u.mu.Unlock()
	<-mine.gone
	if mine.err != nil && len(mine.hosts) > 1 {
		return DeleteVeths(host) // perhaps it was another one's error
	}
	return mine.err
}

// run deletes until nobody waits.
func (u *Unlinker) run() {
	for {
		u.mu.Lock()
		now := u.next
		u.next = nil
		u.running = now != nil
		u.mu.Unlock()
		if now == nil {
			return
		}
		now.err = DeleteVeths(now.hosts...)
		close(now.gone)
	}
}
