package ovs

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/test/ovsd"
)

// limit is how long a test waits for what should take milliseconds.
const limit = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, o *ovsd.OVS) *DB {
	t.Helper()
	d, err := Dial(testContext(t), Config{Endpoint: o.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// start is a private dummy Open vSwitch and a DB connected to it.
func start(t testing.TB) (*ovsd.OVS, *DB) {
	t.Helper()
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	return o, dial(t, o)
}

func spec() BridgeSpec {
	return BridgeSpec{
		Name: "br-twill", DatapathType: "netdev",
		TableNames:  map[uint8]string{0: "classify", 10: "spoof_guard"},
		Prefixes:    []string{"ip_dst", "ipv6_dst"},
		ExternalIDs: map[string]string{"twill": "bridge"},
		Ports: []PortSpec{
			{Name: "tun0", Type: "geneve", OFPort: 32768, Options: map[string]string{"remote_ip": "flow", "key": "flow"},
				ExternalIDs: map[string]string{"twill": "tunnel"}},
			{Name: "twill0", Type: "internal", OFPort: 32769, MTU: 1450, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
				ExternalIDs: map[string]string{"twill": "gateway"}},
		},
	}
}

func ensure(t testing.TB, d *DB, s BridgeSpec) []string {
	t.Helper()
	did, err := d.EnsureBridge(testContext(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return did
}

func vsctl(t testing.TB, o *ovsd.OVS, args ...string) string {
	t.Helper()
	out, err := o.Run(testContext(t), "ovs-vsctl", append([]string{"--timeout=10"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// expect compares text, showing the difference.
func expect(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// expectError wants an error that says all of these.
func expectError(t testing.TB, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one that says %q", says)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error does not say %q:\n%v", s, err)
		}
	}
}

func TestDialWithoutOpenVSwitchNamesEndpointCauseAndRemedy(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	endpoint := "unix:" + filepath.Join(t.TempDir(), "db.sock")
	_, err := Dial(ctx, Config{Endpoint: endpoint})
	expectError(t, err, endpoint, "no such file or directory", "is Open vSwitch running on this node")
}

func TestDialToAnotherDatabaseSaysSoAtOnce(t *testing.T) {
	schema := filepath.Join(t.TempDir(), "other.ovsschema")
	if err := os.WriteFile(schema, []byte(`{"name": "Other", "version": "1.0.0", "tables":
		{"T": {"columns": {"c": {"type": "string"}}}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	o := ovsd.ForTest(t, ovsd.Config{Schema: schema})
	_, err := Dial(testContext(t), Config{Endpoint: o.Endpoint()})
	expectError(t, err, o.Endpoint(), "target database Open_vSwitch not found", "point the endpoint at Open vSwitch's own ovsdb-server")
}

func TestDialToASchemaThatLacksAColumnNamesTableAndColumn(t *testing.T) {
	schema := filepath.Join(t.TempDir(), "old.ovsschema")
	if err := os.WriteFile(schema, []byte(`{"name": "Open_vSwitch", "version": "1.0.0", "tables":
		{"Bridge": {"columns": {"name": {"type": "string"}}}, "Flow_Table": {"columns": {"name": {"type": {"key": "string", "min": 0, "max": 1}}}}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	o := ovsd.ForTest(t, ovsd.Config{Schema: schema})
	_, err := Dial(testContext(t), Config{Endpoint: o.Endpoint()})
	expectError(t, err, "table Interface", "bridgeRow", "datapath_type", "upgrade Open vSwitch")
}

func TestInfoIsWhatOpenVSwitchSaysOfItself(t *testing.T) {
	o, d := start(t)
	info := d.Info()
	expect(t, "system ID", info.SystemID, filepath.Base(o.RunDir()))
	out, err := o.Run(testContext(t), "ovs-vsctl", "get", "Open_vSwitch", ".", "datapath_types")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "datapath types", "["+strings.Join(info.DatapathTypes, ", ")+"]", strings.TrimSpace(out))
	if !strings.Contains(strings.Join(info.InterfaceTypes, " "), "geneve") {
		t.Errorf("interface types %v lack geneve", info.InterfaceTypes)
	}
}

func TestFinishRestoreRemovesTheKeyOnce(t *testing.T) {
	o, d := start(t)
	ctx := testContext(t)
	if d.Restoring() {
		t.Fatal("Restoring before anybody asked for it")
	}
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if err := o.StartDaemon(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := d.await(ctx, func() (bool, error) { return d.Restoring(), nil }); err != nil {
		t.Fatal("Restoring was not seen: ", err)
	}
	before := d.Transactions()
	for range 2 {
		if err := d.FinishRestore(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if d.Restoring() {
		t.Error("still Restoring after FinishRestore")
	}
	expect(t, "other_config", vsctl(t, o, "get", "Open_vSwitch", ".", "other_config"), "{}")
	expect(t, "transactions for two FinishRestore", d.Transactions()-before, uint64(1))
}

func TestTheConnectionComesBackAfterARestartOfOVSDBAndReadsNeverGoEmpty(t *testing.T) {
	o, d := start(t)
	ctx := testContext(t)
	ensure(t, d, spec())
	want := names(d.Ports("br-twill"))
	if err := o.StopDB(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.await(ctx, func() (bool, error) { return d.Alive() != nil, nil }); err != nil {
		t.Fatal("the loss was not seen: ", err)
	}
	expectError(t, d.Alive(), o.Endpoint(), "is Open vSwitch running")
	expect(t, "ports while OVSDB is away", names(d.Ports("br-twill")), want)

	added := make(chan error, 1)
	go func() { _, err := d.AddPort(ctx, "br-twill", Port{Name: "late"}); added <- err }()
	drain(d)
	if err := o.StartDB(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.await(ctx, func() (bool, error) {
		if len(d.Ports("br-twill")) < len(want) {
			return false, fmt.Errorf("ports vanished: %v", names(d.Ports("br-twill")))
		}
		return d.Alive() == nil, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-added; err != nil {
		t.Errorf("an AddPort that waited for the connection: %v", err)
	}
	select {
	case <-d.Changed():
	case <-ctx.Done():
		t.Error("no kick after the reconnect")
	}
	expect(t, "ports afterwards", names(d.Ports("br-twill")), append([]string{"br-twill", "late"}, want[1:]...))
}

func TestClosedDBEndsWaitingCalls(t *testing.T) {
	o, d := start(t)
	ctx := testContext(t)
	ensure(t, d, spec())
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.StartPort(ctx, "br-twill", Port{Name: "p1"}); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { _, err := d.WaitPort(ctx, "br-twill", "p1"); waited <- err }()
	d.Close()
	expectError(t, <-waited, "port p1", "connection was closed")
	expectError(t, d.Alive(), "connection was closed")
}

func TestAForeignChangeKicks(t *testing.T) {
	o, d := start(t)
	drain(d)
	vsctl(t, o, "--no-wait", "add-br", "br-other")
	select {
	case <-d.Changed():
	case <-testContext(t).Done():
		t.Fatal("no kick")
	}
}

func drain(d *DB) {
	select {
	case <-d.Changed():
	default:
	}
}

func names(ports []Port) []string {
	var out []string
	for _, p := range ports {
		out = append(out, p.Name)
	}
	return out
}
