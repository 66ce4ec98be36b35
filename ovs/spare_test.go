package ovs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// waiting returns the process ID of the switch's spare, once it runs.
func (s *Switch) waiting() (pid int) {
	s.spare.mu.Lock()
	defer s.spare.mu.Unlock()
	it := <-s.spare.next
	s.spare.next <- it
	return it.process.(*process).cmd.Process.Pid
}

func TestAKeptReadyProcessAppliesTheNextBundleAndIsReplaced(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	s.KeepReady(ctx)
	first := s.waiting()
	for i := range 3 {
		if err := s.Apply(ctx, fmt.Sprintf("flow add cookie=%d,table=%d,actions=drop\n", i+1, i)); err != nil {
			t.Fatal(err)
		}
	}
	cookies, err := s.Cookies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows", cookies, map[uint64]int{1: 1, 2: 1, 3: 1})
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", first)); err == nil {
		t.Errorf("process %d was not used", first)
	}
	if again := s.waiting(); again == first {
		t.Errorf("process %d waits again", again)
	}
}

// It may be started before the bridge is there, and must not ask the switch for anything before it has its input.
func TestAKeptReadyProcessDoesNotConnectBeforeItHasABundle(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	socket := strings.TrimPrefix(s.target, "unix:")
	if err := os.Rename(socket, socket+".later"); err != nil {
		t.Fatal(err)
	}
	s.KeepReady(ctx)
	pid := s.waiting()
	for { // until it reads descriptor 0, or has ended
		call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if fields := strings.Fields(string(call)); err != nil || len(fields) > 1 && fields[1] == "0x0" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("it does not read its input: %q", call)
		}
		time.Sleep(time.Millisecond) // nothing tells of that
	}
	if err := os.Rename(socket+".later", socket); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(ctx, "flow add cookie=1,actions=drop\n"); err != nil {
		t.Error(err)
	}
}

func TestARefusalByAKeptReadyProcessNamesTheLine(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	s.KeepReady(ctx)
	err := s.Apply(ctx, "flow add actions=drop\nflow add nonsense\n")
	expectError(t, err, "line 2: flow add nonsense")
}

func TestAKeptReadyProcessThatIsKilledCostsNoBundle(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	s.KeepReady(ctx)
	p, err := os.FindProcess(s.waiting())
	if err == nil {
		err = p.Kill()
	}
	if err == nil {
		err = s.Apply(ctx, "flow add cookie=1,actions=drop\n")
	}
	if err != nil {
		t.Fatal(err)
	}
	cookies, err := s.Cookies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows", cookies, map[uint64]int{1: 1})
}

func TestALongBundleGoesPastTheKeptReadyProcess(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	s.KeepReady(ctx)
	first := s.waiting()
	line := "flow add cookie=1,actions=drop\n"
	if err := s.Apply(ctx, strings.Repeat(line, maxSpare/len(line)+1)); err != nil {
		t.Fatal(err)
	}
	expect(t, "the process that waits", s.waiting(), first)
}

func TestAKeptReadyProcessEndsWithItsContext(t *testing.T) {
	s := switchOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.KeepReady(ctx)
	pid := s.waiting()
	cancel()
	for end := time.Now().Add(5 * time.Second); ; {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(status), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is still there: %s", pid, status)
		}
	}
}
