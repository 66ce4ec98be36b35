package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/cni"
)

const burst = 250

// rendezvous lets every caller through once so many are there.
func rendezvous(callers int) func() error {
	var mu sync.Mutex
	there, all := 0, make(chan bool)
	return func() error {
		mu.Lock()
		if there++; there == callers {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all:
			return nil
		case <-time.After(20 * time.Second):
			return fmt.Errorf("%d of %d callers are there", there, callers)
		}
	}
}

func TestABurstOfADDsAndDELsSharesEveryStep(t *testing.T) {
	n := newNode(t, "198.18.0.0/24", "2001:db8::/64")
	a := n.start()
	meet := map[string]func() error{"AddVeth": rendezvous(burst), "StartPort": rendezvous(burst), "Apply": rendezvous(burst), "WaitPort": rendezvous(burst)}
	a.onStep(func(step string) error {
		if f := meet[step]; f != nil {
			return f()
		}
		return nil
	})
	var wg sync.WaitGroup
	results := make([]*cni.Result, burst)
	for i := range burst {
		wg.Go(func() {
			var err error
			if results[i], err = a.Add(t.Context(), pod(i), n.netns); err != nil {
				t.Errorf("pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[netip.Addr]bool{}
	ofports := map[int]bool{}
	for _, r := range results {
		for _, addr := range r.Addresses {
			if seen[addr] {
				t.Errorf("%s was given out twice", addr)
			}
			seen[addr] = true
		}
		ofports[n.rows[r.HostInterface].OFPort] = true
	}
	expect(t, "addresses, OpenFlow numbers", fmt.Sprint(len(seen), len(ofports)), fmt.Sprint(2*burst, burst))
	n.check(t, "after the burst")

	meet = map[string]func() error{"Apply": rendezvous(burst), "DeletePorts": rendezvous(burst), "DeleteVeth": rendezvous(burst)}
	for i := range burst {
		wg.Go(func() {
			if err := a.Del(t.Context(), pod(i)); err != nil {
				t.Errorf("pod %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	expect(t, "what is left", n.dump(), "")
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 253, Cooling: burst, Free: 3})
}

func TestARowThatAppearsWhileAnotherADDLooksIsSeen(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	db := &racingDB{node: n}
	a := n.startWith(db, n)
	// The first ADD ends, its row committed, after the second has read the rows.
	begun, finish, done := make(chan bool), make(chan bool), make(chan error, 1)
	a.onStep(func(step string) error {
		if step == "StartPort" {
			close(begun)
			<-finish
			a.onStep(nil)
		}
		return nil
	})
	go func() { _, err := a.Add(t.Context(), pod(1), n.netns); done <- err }()
	<-begun
	db.during = func() {
		close(finish)
		select {
		case err := <-done:
			done <- err
		case <-time.After(100 * time.Millisecond): // it waits for us: just as well
		}
	}
	_, err := a.Add(t.Context(), pod(2), n.netns)
	if addErr := <-done; addErr != nil {
		t.Fatal(addErr)
	}
	expectError(t, err, cni.ErrNoFreeAddress)
	n.check(t, "after both")
}

func TestCommandsForOneInterfaceWaitForEachOther(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	begun, finish := make(chan bool), make(chan bool)
	a.onStep(func(step string) error {
		if step == "AddVeth" {
			close(begun)
			<-finish
		}
		return nil
	})
	added, deleted := make(chan error, 1), make(chan error, 1)
	go func() { _, err := a.Add(t.Context(), pod(1), n.netns); added <- err }()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expectError(t, a.Del(ctx, pod(1)), cni.ErrTryAgain, "another command for the same interface (port "+linkOf(pod(1))+") is under way")
	_, err := a.Add(ctx, pod(1), n.netns)
	expectError(t, err, cni.ErrTryAgain, "is under way")
	go func() { deleted <- a.Del(t.Context(), pod(1)) }()
	other := pod(1)
	other.IfName = "net1"
	if err := a.Del(t.Context(), other); err != nil { // of another interface: at once
		t.Error(err)
	}
	close(finish)
	if err := errors.Join(<-added, <-deleted); err != nil {
		t.Error(err)
	}
	expect(t, "what the DEL left", n.dump(), "")
}

func TestEverythingAtOnceStaysConsistent(t *testing.T) {
	n := newNode(t, "198.18.0.0/27", "2001:db8::/64")
	a := n.start()
	stop := make(chan bool)
	var readers, writers sync.WaitGroup
	for _, look := range []func(){
		func() {
			for _, r := range a.Usage().Ranges {
				if r.Used+r.Cooling+r.Free != r.Capacity || r.Free < 0 {
					t.Errorf("usage %+v", r)
				}
			}
		},
		func() { a.Attachments() },
		func() { a.Problems() },
		func() { a.Status(t.Context(), nil) },
		func() {
			if repaired, err := a.Repair(t.Context()); len(repaired) > 0 || err != nil {
				t.Errorf("repaired %q, %v though nobody removed anything", repaired, err)
			}
		},
		func() { n.pass(time.Second) },
	} {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					look()
				}
			}
		})
	}
	for i := range 40 {
		writers.Go(func() {
			for range 20 {
				// Two workers share each pod.
				if _, err := a.Add(t.Context(), pod(i/2), n.netns); err != nil && !errors.As(err, new(*cni.Error)) {
					t.Error(err)
				}
				if err := a.Del(t.Context(), pod(i/2)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	n.check(t, "afterwards")
	expect(t, "what is left", n.dump(), "")
}

func TestFlowsAndTheWaitForTheDaemonRunSideBySide(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	applying, waiting := make(chan bool), make(chan bool)
	meet := func(mine, other chan bool) error {
		close(mine)
		select {
		case <-other:
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("the other has not begun")
		}
	}
	a.onStep(func(step string) error {
		switch step {
		case "Apply":
			return meet(applying, waiting)
		case "WaitPort":
			return meet(waiting, applying)
		}
		return nil
	})
	a.add(t, pod(1))
}

func TestThePodEndAndThePortAreMadeSideBySide(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	started := make(chan bool)
	a.onStep(func(step string) error {
		switch step {
		case "StartPort":
			close(started)
		case "done AddVeth":
			select {
			case <-started:
			case <-time.After(10 * time.Second):
				return errors.New("the port waits for the pod end")
			}
		}
		return nil
	})
	a.add(t, pod(1))
}
