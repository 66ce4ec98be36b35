package host

import (
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Unlinker deletes pairs for callers that come one by one, all of them in one network namespace. Those
// that arrive while a deletion is under way share the next one. The zero value works; it must not be
// copied once it is used.
type Unlinker struct {
	mu      sync.Mutex
	next    *unlinking
	running bool
}

// unlinking is one deletion. Its sockets are made by its first caller.
type unlinking struct {
	hosts   []string
	deleter *deleter
	news    *nl.NetlinkSocket
	once    sync.Once
	err     error
	gone    chan struct{}
}

// DeleteVeth is DeleteVeths for one, in company if there is any.
func (u *Unlinker) DeleteVeth(host string) error {
	mine, err := u.join(host)
	if err != nil {
		return err
	}
	<-mine.gone
	if mine.err != nil && len(mine.hosts) > 1 {
		return DeleteVeths(host) // perhaps it was another one's error
	}
	return mine.err
}

func (u *Unlinker) join(host string) (*unlinking, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.next == nil {
		next := &unlinking{gone: make(chan struct{})}
		var err error
		if next.deleter, err = newDeleter(); err != nil {
			return nil, err
		}
		if next.news, err = subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK); err != nil {
			next.deleter.close()
			return nil, fmt.Errorf("subscribe to changes of links: %w", err)
		}
		u.next = next
	}
	u.next.hosts = append(u.next.hosts, host)
	if !u.running {
		u.running = true
		go u.run()
	}
	return u.next, nil
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
		now.run()
	}
}

// run deletes. Callers are answered as soon as the links are gone for everybody else; the kernel keeps
// whoever deletes them some 15 ms longer, until it has freed them (rcu_barrier).
func (n *unlinking) run() {
	defer n.deleter.close()
	defer n.news.Close() // ends awaitDeleted
	go func() {
		if awaitDeleted(n.news, n.hosts) {
			n.answer(nil)
		}
	}()
	n.answer(n.deleter.delete(n.hosts))
}

func (n *unlinking) answer(err error) {
	n.once.Do(func() {
		n.err = err
		close(n.gone)
	})
}

// awaitDeleted returns true when all of these links were deleted, false when the subscription ended before.
func awaitDeleted(s *nl.NetlinkSocket, hosts []string) bool {
	waiting := map[string]bool{}
	for _, h := range hosts {
		waiting[h] = true
	}
	for len(waiting) > 0 {
		messages, _, err := s.Receive()
		if err != nil {
			return false
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
				continue
			}
			header := unix.NlMsghdr(m.Header)
			if l, err := netlink.LinkDeserialize(&header, m.Data); err == nil {
				delete(waiting, l.Attrs().Name)
			}
		}
	}
	return true
}
