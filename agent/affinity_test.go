package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/twill-net/twill/flows"
)

func TestARoundOfAffinityLastsAsLongAsTheShortestAffinity(t *testing.T) {
	port := func(name string, affinity int) *flows.ServicePort {
		return &flows.ServicePort{
			Owner: flows.ServiceOwner("default", name, "80", "tcp"), Protocol: "tcp", Port: 80,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("198.19.0.1")}, Affinity: affinity,
		}
	}
	woken := make(chan bool, 1)
	r := &rounds{wake: func() { woken <- true }}
	at := time.Unix(1_000_000, 0)
	none := flows.NewServices([]*flows.ServicePort{port("a", 0)}, nil)
	if n := r.now(none, at); n != 0 || r.next != nil {
		t.Errorf("without an affinity: round %d, timer %v", n, r.next)
	}
	some := flows.NewServices([]*flows.ServicePort{port("a", 0), port("b", 10_800), port("c", 100)}, nil)
	first := r.now(some, at)
	for after, want := range map[time.Duration]uint32{99 * time.Second: first, 100 * time.Second: first + 1, 250 * time.Second: first + 2} {
		if n := r.now(some, at.Add(after)); n != want {
			t.Errorf("%s later: round %d, want %d", after, n, want)
		}
	}
	r.now(some, at.Add(100*time.Second-time.Millisecond))
	select {
	case <-woken:
	case <-time.After(10 * time.Second):
		t.Error("nobody was told that the next round begins")
	}
}
