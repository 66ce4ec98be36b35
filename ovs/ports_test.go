package ovs

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twill-net/twill/test/ovsd"
)

func bridged(t testing.TB) (*ovsd.OVS, *DB) {
	t.Helper()
	o, d := start(t)
	ensure(t, d, spec())
	return o, d
}

func TestAddPortReturnsItsNumberAndASecondTimeAdoptsIt(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	ids := map[string]string{"pod": "default/web"}
	for range 2 {
		p, err := d.AddPort(ctx, "br-twill", Port{Name: "p1", OFPortRequest: 77, ExternalIDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.MAC) != 6 {
			t.Errorf("MAC %v", p.MAC)
		}
		p.MAC = nil
		expect(t, "the port", p, Port{Name: "p1", OFPortRequest: 77, OFPort: 77, ExternalIDs: ids})
	}
	expect(t, "ports", names(d.Ports("br-twill")), []string{"br-twill", "p1", "tun0", "twill0"})
}

func TestStartPortPutsTheRowAmongPortsBeforeTheDaemonActs(t *testing.T) {
	o, d := bridged(t)
	ctx := testContext(t)
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.StartPort(ctx, "br-twill", Port{Name: "p1", OFPortRequest: 77}); err != nil {
		t.Fatal(err)
	}
	expect(t, "the port while the daemon is down", d.Ports("br-twill")[1], Port{Name: "p1", OFPortRequest: 77})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := d.WaitPort(short, "br-twill", "p1")
	expectError(t, err, "port p1 has no OpenFlow number yet", "is ovs-vswitchd running")
	if err := o.StartDaemon(ctx, false); err != nil {
		t.Fatal(err)
	}
	p, err := d.WaitPort(ctx, "br-twill", "p1")
	if err != nil || p.OFPort != 77 {
		t.Errorf("got %+v, %v; want number 77", p, err)
	}
}

func TestAddPortRefusesANameThatIsTaken(t *testing.T) {
	o, d := bridged(t)
	ctx := testContext(t)
	vsctl(t, o, "add-br", "br-other", "--", "add-port", "br-other", "eth7", "--", "add-port", "br-twill", "p1")
	if err := d.await(ctx, func() (bool, error) { _, ok := d.port("br-other", "eth7"); return ok, nil }); err != nil {
		t.Fatal(err)
	}
	_, err := d.AddPort(ctx, "br-twill", Port{Name: "eth7"})
	expectError(t, err, "adding port eth7 to bridge br-twill", "taken by a port of bridge br-other")
	_, err = d.AddPort(ctx, "br-twill", Port{Name: "p1", ExternalIDs: map[string]string{"pod": "a"}})
	expectError(t, err, "adding port p1", "other external_ids")
	_, err = d.AddPort(ctx, "br-none", Port{Name: "p2"})
	expectError(t, err, "adding port p2", "there is no bridge br-none")
}

func TestAPortThatTheDaemonCannotMakeIsRemovedAgain(t *testing.T) {
	_, d := bridged(t)
	_, err := d.AddPort(testContext(t), "br-twill", Port{Name: "p1", Type: "nonsense"})
	expectError(t, err, "ovs-vswitchd cannot use port p1", "could not")
	expect(t, "ports", names(d.Ports("br-twill")), []string{"br-twill", "tun0", "twill0"})
}

func TestAPortWithoutADeviceIsRemovedAgainOnARealDatapath(t *testing.T) {
	o := ovsd.ForTest(t, ovsd.Config{NetNS: ovsd.NetNS(t)})
	d := dial(t, o)
	ensure(t, d, spec())
	_, err := d.AddPort(testContext(t), "br-twill", Port{Name: "veth-none"})
	expectError(t, err, "ovs-vswitchd cannot use port veth-none", "could not open network device veth-none (No such device)")
	expect(t, "ports", names(d.Ports("br-twill")), []string{"br-twill", "tun0", "twill0"})
}

func TestDeleteOfAMissingPortIsNoError(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	for _, p := range []string{"p1", "p2"} {
		if _, err := d.AddPort(ctx, "br-twill", Port{Name: p}); err != nil {
			t.Fatal(err)
		}
	}
	before := d.Transactions()
	for range 2 {
		if err := d.DeletePorts(ctx, "br-twill", "p1", "p2", "p3"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "transactions", d.Transactions()-before, uint64(1))
	expect(t, "ports", names(d.Ports("br-twill")), []string{"br-twill", "tun0", "twill0"})
	if err := d.DeletePorts(ctx, "br-none", "p1"); err != nil {
		t.Errorf("on a missing bridge: %v", err)
	}
}

func TestAChangeWhileOVSDBIsAwaySaysSo(t *testing.T) {
	o, d := bridged(t)
	ctx := testContext(t)
	if err := o.StopDB(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.await(ctx, func() (bool, error) { return d.Alive() != nil, nil }); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := d.AddPort(short, "br-twill", Port{Name: "p1"})
	expectError(t, err, "adding port p1 to bridge br-twill", "deadline exceeded", o.Endpoint(), "is Open vSwitch running")
}

func TestSetPortIDsOverwritesTheseKeysOnly(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	if _, err := d.AddPort(ctx, "br-twill", Port{Name: "p1", ExternalIDs: map[string]string{"a": "1", "b": "1"}}); err != nil {
		t.Fatal(err)
	}
	before := d.Transactions()
	for range 2 {
		if err := d.SetPortIDs(ctx, "br-twill", "p1", map[string]string{"b": "2", "c": "2"}); err != nil {
			t.Fatal(err)
		}
	}
	p, _ := d.port("br-twill", "p1")
	expect(t, "external_ids", p.ExternalIDs, map[string]string{"a": "1", "b": "2", "c": "2"})
	expect(t, "transactions", d.Transactions()-before, uint64(1))
	expectError(t, d.SetPortIDs(ctx, "br-twill", "p9", map[string]string{"a": "1"}), "port p9", "no such port")
}

func TestAHundredPortsAtOnceShareFewTransactions(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	before, began := d.Transactions(), time.Now()
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			p, err := d.AddPort(ctx, "br-twill", Port{Name: fmt.Sprintf("p%02d", n), OFPortRequest: 100 + n})
			if err != nil || p.OFPort != 100+n {
				t.Errorf("port %d: %+v, %v", n, p, err)
			}
		})
	}
	wg.Wait()
	used := d.Transactions() - before
	t.Logf("%d transactions, %v", used, time.Since(began))
	if used > 20 {
		t.Errorf("%d transactions for 100 ports", used)
	}
	expect(t, "number of ports", len(d.Ports("br-twill")), 103)
}

func TestOneBadPortDoesNotHurtTheOthersOfItsTransaction(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	errs := make([]error, 20)
	var wg sync.WaitGroup
	for n := range errs {
		wg.Go(func() {
			request := 100 + n
			if n == 7 {
				request = 70000 // above what the schema allows
			}
			_, errs[n] = d.AddPort(ctx, "br-twill", Port{Name: fmt.Sprintf("p%02d", n), OFPortRequest: request})
		})
	}
	wg.Wait()
	for n, err := range errs {
		if n == 7 {
			expectError(t, err, "adding port p07", "OVSDB refused", "70000")
		} else if err != nil {
			t.Errorf("port %d: %v", n, err)
		}
	}
	expect(t, "number of ports", len(d.Ports("br-twill")), 22)
}

func TestAddAndDeleteOfOneNameAtOnceLeaveAnHonestAnswer(t *testing.T) {
	_, d := bridged(t)
	ctx := testContext(t)
	for range 20 {
		if _, err := d.AddPort(ctx, "br-twill", Port{Name: "p1"}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := d.DeletePorts(ctx, "br-twill", "p1"); err != nil {
				t.Error(err)
			}
		})
		if _, err := d.AddPort(ctx, "br-twill", Port{Name: "p1"}); err != nil && !strings.Contains(err.Error(), "removed from bridge br-twill meanwhile") && ctx.Err() == nil {
			t.Errorf("AddPort: %v", err)
		}
		wg.Wait()
	}
}

// BenchmarkAddPort measures one port until its number is known, on dummy devices. Nearly all of it
// should be ovs-vswitchd's own reconfiguration: "commit-ns" is the part until OVSDB has the row.
func BenchmarkAddPort(b *testing.B) {
	_, d := bridged(b)
	var commit time.Duration
	for n := 0; b.Loop(); n++ {
		name, began := fmt.Sprintf("p%d", n), time.Now()
		if err := d.StartPort(b.Context(), "br-twill", Port{Name: name}); err != nil {
			b.Fatal(err)
		}
		commit += time.Since(began)
		if _, err := d.WaitPort(b.Context(), "br-twill", name); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.DeletePorts(b.Context(), "br-twill", name); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(commit.Nanoseconds())/float64(b.N), "commit-ns/op")
}
