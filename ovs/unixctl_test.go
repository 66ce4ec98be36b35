package ovs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/twill-net/twill/test/ovsd"
)

// dialed is a connection to the ovs-vswitchd of a test.
func dialed(t *testing.T, o *ovsd.OVS) *Daemon {
	t.Helper()
	d, err := DialDaemon(testContext(t), o.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestCallAnswersAndRefuses(t *testing.T) {
	o, _ := bridged(t)
	ctx := testContext(t)
	d := dialed(t, o)
	version, err := d.Call(ctx, "version")
	if err != nil || !strings.HasPrefix(version, "ovs-vswitchd (Open vSwitch) ") {
		t.Errorf("version is %q, %v", version, err)
	}
	_, err = d.Call(ctx, "no/such")
	expectError(t, err, "ovs-vswitchd", "no/such", `"no/such" is not a valid command`)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := d.Call(gone, "version"); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestManyCallsAtOnceGetTheirOwnAnswers(t *testing.T) {
	o, _ := bridged(t)
	ctx := testContext(t)
	d := dialed(t, o)
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			out, err := d.Trace(ctx, "br-twill", fmt.Sprintf("in_port=32769,tcp,tp_dst=%d", 1000+n))
			if err != nil || !strings.Contains(out, fmt.Sprintf("tp_dst=%d,", 1000+n)) {
				t.Errorf("trace %d: %v\n%s", n, err, out)
			}
		})
	}
	wg.Wait()
}

func TestTraceTakesOptionsBehindTheFlow(t *testing.T) {
	o, _ := bridged(t)
	ctx := testContext(t)
	if err := NewSwitch("br-twill", o.RunDir(), System()).Apply(ctx, `flow add cookie=0x7,table=0,ip actions=ct(table=10)
flow add cookie=0x8,table=10,ct_state=+new+trk,ip actions=drop`); err != nil {
		t.Fatal(err)
	}
	d := dialed(t, o)
	out, err := d.Trace(ctx, "br-twill", "in_port=32769,icmp,nw_src=198.51.100.1", "--ct-next", "trk,new")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "cookie 0x7") || !strings.Contains(out, "cookie 0x8") {
		t.Errorf("the trace does not go on behind conntrack:\n%s", out)
	}
	_, err = d.Trace(ctx, "br-none", "icmp")
	expectError(t, err, "ofproto/trace", "br-none")
}

func TestAConnectionThatHasEndedIsForgottenAlready(t *testing.T) {
	o, _ := bridged(t)
	ctx := testContext(t)
	d := dialed(t, o)
	const ended = "ct_nw_src=198.51.100.1,ct_nw_dst=198.51.100.2,ct_nw_proto=6,ct_tp_src=40000,ct_tp_dst=80"
	if _, err := d.Call(ctx, "dpctl/flush-conntrack", "zone=7", ended); err == nil {
		t.Error("ovs-vswitchd does not mind any more: the test shows nothing")
	}
	if err := d.ForgetConnection(ctx, 7, ended); err != nil {
		t.Error(err)
	}
	expectError(t, d.ForgetConnection(ctx, 7, "ct_nw_proto=nonsense"), "dpctl/flush-conntrack")
}

func TestDoneIsClosedWhenTheDaemonDies(t *testing.T) {
	o, _ := start(t)
	ctx := testContext(t)
	d := dialed(t, o)
	select {
	case <-d.Done():
		t.Fatal("done while it lives")
	default:
	}
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-ctx.Done():
		t.Fatal("not done")
	}
	_, err := d.Call(ctx, "version")
	expectError(t, err, "the connection was lost")
	_, err = DialDaemon(ctx, o.RunDir())
	expectError(t, err, "ovs-vswitchd: dial unix "+o.RunDir(), "connection refused", "is ovs-vswitchd running")
}

func TestTheControlSocketIsFoundWithoutAPidFileAndAStaleOneIsNoDaemon(t *testing.T) {
	o, _ := start(t)
	ctx := testContext(t)
	other, err := os.MkdirTemp("", "ctl") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	_, daemon := o.Pids()
	name := fmt.Sprintf("ovs-vswitchd.%d.ctl", daemon)
	if err := os.Symlink(filepath.Join(o.RunDir(), name), filepath.Join(other, name)); err != nil {
		t.Fatal(err)
	}
	d, err := DialDaemon(ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := os.WriteFile(filepath.Join(other, "ovs-vswitchd.pid"), []byte("4194303\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = DialDaemon(ctx, other)
	expectError(t, err, "ovs-vswitchd.4194303.ctl", "no such file", "is ovs-vswitchd running")
}
