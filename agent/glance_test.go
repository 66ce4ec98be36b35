package agent

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestTheDatapathIsReadOnceInASecond: however often drops are asked for.
func TestTheDatapathIsReadOnceInASecond(t *testing.T) {
	reads, now := 0, time.Unix(1700000000, 0)
	var fails error
	g := &glance{now: func() time.Time { return now }, read: func(context.Context) (string, error) { reads++; return "flows", fails }}
	ask := func() error {
		t.Helper()
		text, err := g.megaflows(t.Context())
		if err == nil && text != "flows" {
			t.Errorf("read %q", text)
		}
		return err
	}
	for range 5 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		now = now.Add(150 * time.Millisecond)
	}
	if reads != 1 {
		t.Errorf("%d reads within a second", reads)
	}
	now, fails = now.Add(glanceInterval), errors.New("the daemon is gone")
	if err := ask(); err == nil || reads != 2 {
		t.Errorf("%v after %d reads", err, reads)
	}
	fails = nil
	if err := ask(); err != nil || reads != 3 {
		t.Errorf("%v after %d reads: a failure is no answer to keep", err, reads)
	}
}
