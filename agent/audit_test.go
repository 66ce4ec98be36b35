package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// slowBridge hands out the table as it was when the reading began, once it is let go.
type slowBridge struct {
	*fakeBridge
	began  chan struct{}
	letGo  chan error
	atOnce bool // the first pass does not wait
}

func (b *slowBridge) Flows(ctx context.Context) ([]ovs.Installed, error) {
	out, err := b.fakeBridge.Flows(ctx)
	if b.atOnce {
		return out, err
	}
	select {
	case b.began <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case refusal := <-b.letGo:
		return out, errors.Join(err, refusal)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// audited returns a loop among peers a and b whose audit has begun; then peer b has gone, and c has come.
func audited(t *testing.T, damage func(*fakeBridge)) (*slowBridge, *loop, *test.Hook) {
	t.Helper()
	b := &slowBridge{fakeBridge: newFakeBridge(), began: make(chan struct{}), letGo: make(chan error), atOnce: true}
	peers := make(chan []string, 2)
	peers <- []string{"a", "b"}
	peers <- []string{"a", "", "c"}
	now := aWorld()
	l, hook := loopWith(t, b, func() (*flows.World, error) {
		select {
		case names := <-peers:
			now = aWorld(names...)
			delete(now.Peers, "")
		default:
		}
		return now, nil
	})
	mustApply(t, l)
	b.change(func() { damage(b.fakeBridge) })
	b.atOnce = false
	l.audit()
	<-b.began
	mustApply(t, l) // does not wait for the reading
	if b.sent() != 2 {
		t.Fatalf("%d bundles, want 2", b.sent())
	}
	return b, l, hook
}

// awaitBundles returns once that many were sent.
func awaitBundles(t *testing.T, b *fakeBridge, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); b.sent() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bundles, want %d", b.sent(), n)
		}
	}
}

func TestChangesDoNotWaitForAnAuditAndAreNoDrift(t *testing.T) {
	b, _, hook := audited(t, func(*fakeBridge) {})
	b.letGo <- nil
	audited := func(e *logrus.Entry) bool { return e.Data["cause"] == "audit" }
	for deadline := time.Now().Add(5 * time.Second); !slices.ContainsFunc(hook.AllEntries(), audited); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no pass compared the table")
		}
	}
	if b.sent() != 2 {
		t.Errorf("what changed while the table was read was taken for drift: %q", b.bundles[2:])
	}
}

func TestAnAuditFindsDriftAmongChanges(t *testing.T) {
	var lost uint64
	b, l, _ := audited(t, func(b *fakeBridge) {
		for c, f := range b.held {
			if f.Table == uint8(flows.Classify) && f.Priority == 0 { // of no peer
				lost = c
				delete(b.held, c)
				break
			}
		}
		b.held[0] = ovs.Installed{Table: 0, Priority: 1}
	})
	b.letGo <- nil
	awaitBundles(t, b.fakeBridge, 3)
	<-b.began // it is read once more, for what this OVS prints otherwise
	b.letGo <- nil
	mustApply(t, l)
	b.change(func() {
		if _, ok := b.held[lost]; !ok {
			t.Error("the lost flow is still missing")
		}
		if _, ok := b.held[0]; ok {
			t.Error("the foreign flow is still there")
		}
		if len(b.bundles) != 3 {
			t.Errorf("%d bundles, want 3: %q", len(b.bundles), slices.Concat(b.bundles[3:]))
		}
	})
}

func TestAnAuditThatCannotReadIsTakenOverByTheLoop(t *testing.T) {
	b, l, _ := audited(t, func(b *fakeBridge) { b.held[0] = ovs.Installed{Table: 0, Priority: 1} })
	b.letGo <- errors.New("connection refused")
	<-b.began // the loop's own reading
	b.letGo <- nil
	<-b.began // and the one after the repair
	b.letGo <- nil
	mustApply(t, l)
	b.change(func() {
		if _, ok := b.held[0]; ok {
			t.Error("the foreign flow is still there")
		}
	})
}
