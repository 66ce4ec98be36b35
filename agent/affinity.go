package agent

import (
	"sync"
	"time"

	"github.com/twill-net/twill/flows"
)

// rounds tell which round of session affinity it is (flows.World.Round), and when the next begins. One lasts as long as the
// shortest affinity of all: a client whose time is out has seen another begin.
type rounds struct {
	wake func() // called when one begins

	mu   sync.Mutex
	next *time.Timer
}

// now is the round at a time; 0 where no Service has an affinity. The number follows from the time alone, so a restart
// changes nothing.
func (r *rounds) now(s *flows.Services, at time.Time) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next != nil {
		r.next.Stop()
	}
	lasts := time.Duration(s.ShortestAffinity()) * time.Second
	if lasts == 0 {
		return 0
	}
	begun := at.Truncate(lasts)
	r.next = time.AfterFunc(begun.Add(lasts).Sub(at), r.wake)
	return uint32(begun.Unix() / int64(lasts/time.Second))
}
