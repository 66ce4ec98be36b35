package ovsd_test

import (
	"strings"
	"testing"

	"github.com/twill-net/twill/test/ovsd"
)

func TestAPrivateSwitchStartsAnswersStopsAndStartsAgain(t *testing.T) {
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	ctx := t.Context()
	if db, daemon := o.Pids(); db == 0 || daemon == 0 {
		t.Fatalf("pids %d and %d after Start, want both", db, daemon)
	}
	if _, err := o.Run(ctx, "ovs-vsctl", "add-br", "br0"); err != nil {
		t.Fatal(err)
	}
	again := ovsd.At(ovsd.Config{Dir: o.RunDir(), Dummy: true})
	for range 2 {
		if err := again.Stop(ctx); err != nil {
			t.Fatalf("Stop: %v", err)
		}
	}
	if db, daemon := o.Pids(); db != 0 || daemon != 0 {
		t.Fatalf("pids %d and %d after Stop, want none", db, daemon)
	}
	if _, err := ovsd.Start(ctx, ovsd.Config{Dir: o.RunDir(), Dummy: true}); err != nil {
		t.Fatal(err)
	}
	if out, err := o.Run(ctx, "ovs-vsctl", "list-br"); err != nil || strings.TrimSpace(out) != "br0" {
		t.Fatalf("bridges after a second Start: %q, %v; want br0", out, err)
	}
}

func TestAKilledDaemonStartsAgainWaitingForItsFlows(t *testing.T) {
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	ctx := t.Context()
	_, before := o.Pids()
	for range 2 {
		if err := o.KillDaemon(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.StartDaemon(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, after := o.Pids(); after == 0 || after == before {
		t.Fatalf("pid %d after the restart, %d before; want another", after, before)
	}
	out, err := o.Run(ctx, "ovs-vsctl", "get", "Open_vSwitch", ".", "other_config:flow-restore-wait")
	if err != nil || strings.TrimSpace(out) != `"true"` {
		t.Fatalf("flow-restore-wait is %q, %v", out, err)
	}
}

func TestADirectoryTooLongForSocketsIsRefused(t *testing.T) {
	_, err := ovsd.Start(t.Context(), ovsd.Config{Dir: "/tmp/" + strings.Repeat("x", 90)})
	if err == nil || !strings.Contains(err.Error(), "too long for unix sockets: shorten it by 13 bytes") {
		t.Fatalf("got %v", err)
	}
}
