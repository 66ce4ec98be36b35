package ovs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// ledger is a commit that remembers each transaction by its comments, and can be held.
type ledger struct {
	committed []string
	entered   chan struct{}
	release   chan struct{}
}

func (l *ledger) commit(_ context.Context, t *txn) error {
	var said []string
	for _, op := range t.ops {
		said = append(said, op.UUIDName)
	}
	l.entered <- struct{}{}
	<-l.release
	l.committed = append(l.committed, strings.Join(said, " "))
	if slices.Contains(said, "bad") {
		return rejected{errors.New("bad is bad")}
	}
	return nil
}

func adds(name string) func(*txn) error {
	return func(t *txn) error {
		t.ops = append(t.ops, ovsdb.Operation{UUIDName: name})
		return nil
	}
}

// play holds a first change in its transaction while the others arrive in order, then lets all go on
// and returns their errors.
func play(t *testing.T, members ...string) (*ledger, []string) {
	t.Helper()
	l := &ledger{entered: make(chan struct{}, 100), release: make(chan struct{})}
	b := &batcher{commit: l.commit}
	ctx := testContext(t)
	first := make(chan error, 1)
	go func() { first <- b.do(ctx, []string{"first"}, adds("first")) }()
	<-l.entered
	done := make([]chan error, len(members))
	b.mu.Lock()
	for i, name := range members {
		done[i] = make(chan error, 1)
		build := adds(name)
		if name == "unbuilt" {
			build = func(t *txn) error { adds("half")(t); return errors.New("cannot be built") }
		}
		b.waiting = append(b.waiting, &member{ctx: ctx, names: []string{name}, build: build, done: done[i]})
	}
	b.mu.Unlock()
	close(l.release)
	var errs []string
	for _, c := range append([]chan error{first}, done...) {
		errs = append(errs, fmt.Sprint(<-c))
	}
	return l, errs
}

func TestChangesThatArriveMeanwhileShareTheNextTransaction(t *testing.T) {
	l, errs := play(t, "a", "b", "c")
	expect(t, "transactions", l.committed, []string{"first", "a b c"})
	expect(t, "errors", errs, []string{"<nil>", "<nil>", "<nil>", "<nil>"})
}

func TestChangesOfOneNameGoInOrderIntoDifferentTransactions(t *testing.T) {
	l, _ := play(t, "a", "b", "a", "c", "a")
	expect(t, "transactions", l.committed, []string{"first", "a b c", "a", "a"})
}

func TestARefusedTransactionIsTriedAgainOneByOne(t *testing.T) {
	l, errs := play(t, "a", "bad", "b")
	expect(t, "transactions", l.committed, []string{"first", "a bad b", "a", "bad", "b"})
	expect(t, "errors", errs, []string{"<nil>", "<nil>", "bad is bad", "<nil>"})
}

func TestAChangeThatCannotBeBuiltLeavesNothingBehind(t *testing.T) {
	l, errs := play(t, "a", "unbuilt", "b")
	expect(t, "transactions", l.committed, []string{"first", "a b"})
	expect(t, "errors", errs, []string{"<nil>", "<nil>", "cannot be built", "<nil>"})
}

func TestACallerThatNoLongerWaitsIsLeftOut(t *testing.T) {
	l := &ledger{entered: make(chan struct{}, 100), release: make(chan struct{})}
	b := &batcher{commit: l.commit}
	first := make(chan error, 1)
	go func() { first <- b.do(t.Context(), []string{"first"}, adds("first")) }()
	<-l.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.do(ctx, []string{"late"}, adds("late")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	last := make(chan error, 1)
	go func() { last <- b.do(t.Context(), []string{"last"}, adds("last")) }()
	close(l.release)
	if err := errors.Join(<-first, <-last); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(l.committed, func(s string) bool { return strings.Contains(s, "late") }) {
		t.Errorf("committed %q", l.committed)
	}
}
