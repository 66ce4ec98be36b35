package ovs

import (
	"strings"
	"testing"

	"github.com/twill-net/twill/test/ovsd"
)

// configuration is what people have set on a bridge, without what ovs-vswitchd reports of it.
func configuration(t testing.TB, o *ovsd.OVS, bridge string) string {
	t.Helper()
	return vsctl(t, o, "--columns=_uuid,name,ports,datapath_type,fail_mode,protocols,controller,mirrors,flow_tables,other_config,external_ids",
		"list", "Bridge", bridge)
}

func TestEnsureBridgeCreatesEverythingAndIsThenContent(t *testing.T) {
	o, d := start(t)
	expect(t, "what was done", ensure(t, d, spec()), []string{
		"created bridge br-twill",
		"created geneve port tun0 of bridge br-twill",
		"created internal port twill0 of bridge br-twill",
	})
	before := d.Transactions()
	expect(t, "transactions to create", before, uint64(1))
	expect(t, "what was done the second time", ensure(t, d, spec()), []string(nil))
	expect(t, "transactions of the second time", d.Transactions()-before, uint64(0))

	get := func(table, name, column string) string { return vsctl(t, o, "get", table, name, column) }
	expect(t, "fail_mode", get("Bridge", "br-twill", "fail_mode"), "secure")
	expect(t, "protocols", get("Bridge", "br-twill", "protocols"), "[OpenFlow10, OpenFlow11, OpenFlow12, OpenFlow13, OpenFlow14, OpenFlow15]")
	expect(t, "other_config", get("Bridge", "br-twill", "other_config"), `{disable-in-band="true"}`)
	expect(t, "external_ids", get("Bridge", "br-twill", "external_ids"), "{twill=bridge}")
	expect(t, "tunnel options", get("Interface", "tun0", "options"), "{key=flow, remote_ip=flow}")
	expect(t, "tunnel number", get("Interface", "tun0", "ofport"), "32768")
	expect(t, "gateway number", get("Interface", "twill0", "ofport"), "32769")
	expect(t, "gateway MAC", get("Interface", "twill0", "mac"), `"02:00:00:00:00:01"`)
	expect(t, "gateway MTU", get("Interface", "twill0", "mtu_request"), "1450")
	sw := NewSwitch("br-twill", o.RunDir(), System())
	if err := sw.Apply(testContext(t), "flow add table=0,actions=drop\nflow add table=10,actions=drop"); err != nil {
		t.Fatal(err)
	}
	out, err := sw.Dump(testContext(t), "--names", "--no-stats")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows with names", out, " table=classify, actions=drop\n table=\"spoof_guard\", actions=drop\n")
}

func TestEnsureBridgeRepairsEachDamageAndNothingElse(t *testing.T) {
	o, d := start(t)
	ensure(t, d, spec())
	for _, c := range []struct {
		name, want string
		damage     []string
	}{
		{"fail mode", "set fail_mode of bridge br-twill to secure, was standalone", []string{"set-fail-mode", "br-twill", "standalone"}},
		{"no fail mode", "set fail_mode of bridge br-twill to secure, was not set", []string{"del-fail-mode", "br-twill"}},
		{"protocols", "set protocols of bridge br-twill to OpenFlow10 to OpenFlow15, were OpenFlow10", []string{"set", "Bridge", "br-twill", "protocols=OpenFlow10"}},
		{"in-band", "set other_config of bridge br-twill: disable-in-band=true", []string{"set", "Bridge", "br-twill", "other_config:disable-in-band=false"}},
		{"mark", "set external_ids of bridge br-twill: twill=bridge", []string{"--", "clear", "Bridge", "br-twill", "external_ids", "--", "del-port", "tun0", "--", "del-port", "twill0"}},
		{"table names", "named the tables of bridge br-twill: 2 new or changed, 0 removed or replaced", []string{"clear", "Bridge", "br-twill", "flow_tables"}},
		{"a wrong table name", "named the tables of bridge br-twill: 1 new or changed, 1 removed or replaced", []string{"--", "--id=@t", "create", "Flow_Table", "name=wrong", "--", "set", "Bridge", "br-twill", "flow_tables:10=@t"}},
		{"a table without prefixes", "named the tables of bridge br-twill: 1 new or changed, 1 removed or replaced", []string{"--", "--id=@t", "create", "Flow_Table", "name=spoof_guard", "--", "set", "Bridge", "br-twill", "flow_tables:10=@t"}},
		{"a table name too many", "named the tables of bridge br-twill: 0 new or changed, 1 removed or replaced", []string{"--", "--id=@t", "create", "Flow_Table", "name=old", "--", "set", "Bridge", "br-twill", "flow_tables:11=@t"}},
		{"tunnel options", "set options of port tun0 to type=geneve ofport_request=32768 options:key=flow,remote_ip=flow", []string{"set", "Interface", "tun0", "options:remote_ip=198.51.100.1"}},
		{"gateway MTU", "set mtu_request of port twill0 to type=internal ofport_request=32769 mtu_request=1450 mac=02:00:00:00:00:01", []string{"set", "Interface", "twill0", "mtu_request=1400"}},
		{"gateway MAC", "set mac of port twill0 to type=internal ofport_request=32769 mtu_request=1450 mac=02:00:00:00:00:01", []string{"clear", "Interface", "twill0", "mac"}},
		{"OpenFlow number", "set ofport_request of port twill0 to type=internal ofport_request=32769 mtu_request=1450 mac=02:00:00:00:00:01", []string{"set", "Interface", "twill0", "ofport_request=7"}},
		{"port mark", "set external_ids of port tun0: twill=tunnel", []string{"clear", "Interface", "tun0", "external_ids"}},
		{"gateway removed", "created internal port twill0 of bridge br-twill", []string{"del-port", "twill0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			vsctl(t, o, "set", "Bridge", "br-twill", "external_ids:theirs=stays", "other_config:theirs=stays")
			vsctl(t, o, c.damage...)
			// The daemon has answered ovs-vsctl; our copy may be a moment behind.
			if err := d.await(testContext(t), func() (bool, error) {
				r := &repair{db: d, spec: spec()}
				return r.plan() == nil && len(r.ops) > 0, nil
			}); err != nil {
				t.Fatal("the damage is not seen: ", err)
			}
			did := ensure(t, d, spec())
			if len(did) == 0 || did[0] != c.want || (len(did) > 1 && c.name != "mark") {
				t.Errorf("what was done: %q, want %q", did, c.want)
			}
			expect(t, "what was done after that", ensure(t, d, spec()), []string(nil))
			expect(t, "their key", vsctl(t, o, "get", "Bridge", "br-twill", "other_config:theirs"), "stays")
		})
	}
}

func TestTheTunnelTypeIsChangedInPlace(t *testing.T) {
	o, d := start(t)
	s := spec()
	ensure(t, d, s)
	was := vsctl(t, o, "get", "Interface", "tun0", "_uuid")
	s.Ports[0].Type, s.Ports[0].Options = "vxlan", map[string]string{"remote_ip": "flow", "key": "flow", "dst_port": "8472"}
	expect(t, "what was done", ensure(t, d, s), []string{
		"set options, type of port tun0 to type=vxlan ofport_request=32768 options:dst_port=8472,key=flow,remote_ip=flow",
	})
	expect(t, "the row", vsctl(t, o, "get", "Interface", "tun0", "_uuid"), was)
	expect(t, "the number", vsctl(t, o, "get", "Interface", "tun0", "ofport"), "32768")
	out, err := o.Run(testContext(t), "ovs-appctl", "dpif/show")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "tun0 32768/1: (vxlan") {
		t.Errorf("ovs-vswitchd has not taken it up:\n%s", out)
	}
}

func TestABridgeOfOthersThatIsInUseIsOccupied(t *testing.T) {
	o, d := start(t)
	vsctl(t, o, "add-br", "br-twill", "--", "add-port", "br-twill", "eth7")
	before := configuration(t, o, "br-twill")
	_, err := d.EnsureBridge(testContext(t), spec())
	expectError(t, err, "bridge br-twill", "not ours (no external_ids twill=bridge)", "occupied by eth7", "choose another bridge name", "ovs-vsctl del-br br-twill")
	expect(t, "the occupied bridge", configuration(t, o, "br-twill"), before)
}

func TestAnEmptyBridgeOfThatNameIsAdopted(t *testing.T) {
	o, d := start(t)
	vsctl(t, o, "add-br", "br-twill", "--", "set", "Bridge", "br-twill", "datapath_type=netdev")
	uuid := vsctl(t, o, "get", "Bridge", "br-twill", "_uuid")
	if len(ensure(t, d, spec())) == 0 {
		t.Error("nothing was repaired")
	}
	expect(t, "the row", vsctl(t, o, "get", "Bridge", "br-twill", "_uuid"), uuid)
	expect(t, "what was done the second time", ensure(t, d, spec()), []string(nil))
}

func TestAForeignBridgeStaysAsItIs(t *testing.T) {
	o, d := start(t)
	vsctl(t, o, "add-br", "br-other", "--", "add-port", "br-other", "eth7", "--", "set", "Interface", "eth7", "external_ids:a=b")
	foreign := func() string {
		return configuration(t, o, "br-other") + vsctl(t, o, "list", "Port", "eth7") +
			vsctl(t, o, "--columns=_uuid,name,external_ids,ofport,type", "list", "Interface", "eth7")
	}
	before := foreign()
	ctx := testContext(t)
	s := spec()
	ensure(t, d, s)
	sent := d.Transactions()
	if err := d.DeletePorts(ctx, "br-twill", "eth7", "br-other", "br-twill"); err != nil {
		t.Fatal(err)
	}
	expect(t, "transactions to delete ports that are not ours to delete", d.Transactions()-sent, uint64(0))
	for range 2 {
		if err := d.DeleteBridge(ctx, "br-twill", s.ExternalIDs); err != nil {
			t.Fatal(err)
		}
	}
	expectError(t, d.DeleteBridge(ctx, "br-other", s.ExternalIDs), "bridge br-other is not ours", "ovs-vsctl del-br")
	expect(t, "the foreign bridge", foreign(), before)
	expect(t, "bridges", vsctl(t, o, "list-br"), "br-other")

	s.Ports[1].Name = "eth7"
	_, err := d.EnsureBridge(ctx, s)
	expect(t, "bridges after creating one whose port is elsewhere", vsctl(t, o, "list-br"), "br-other")
	expectError(t, err, "port eth7 exists on bridge br-other", "ovs-vsctl del-port eth7")
}

func TestAnInfrastructurePortThatCannotBeMadeSaysWhy(t *testing.T) {
	_, d := start(t)
	s := spec()
	s.Ports[0].Type = "nonsense"
	_, err := d.EnsureBridge(testContext(t), s)
	expectError(t, err, "bridge br-twill", "port tun0", "could not")
}

func TestAnOpenFlowNumberThatIsTakenIsAnError(t *testing.T) {
	_, d := start(t)
	ctx := testContext(t)
	s := spec()
	infra := s.Ports
	s.Ports = nil
	ensure(t, d, s)
	if _, err := d.AddPort(ctx, "br-twill", Port{Name: "p1", OFPortRequest: 32769}); err != nil {
		t.Fatal(err)
	}
	s.Ports = infra
	_, err := d.EnsureBridge(ctx, s)
	expectError(t, err, "port twill0 got OpenFlow number", "not 32769")
}

func TestABridgeWithoutAMarkIsRefused(t *testing.T) {
	_, d := start(t)
	s := spec()
	s.ExternalIDs = nil
	_, err := d.EnsureBridge(testContext(t), s)
	expectError(t, err, "bridge br-twill", "needs external_ids")
}
