// Package bridgetest lends tests a bridge as an agent makes it, on a private Open vSwitch with a dummy
// datapath: what no packet has to pass, only flows and ofproto/trace.
package bridgetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/ovsd"
)

// Name is the name of the bridge.
const Name = "br-twill"

// Bridge is all there is to speak to it by.
type Bridge struct {
	OVS    *ovsd.OVS
	Switch *ovs.Switch
	Daemon *ovs.Daemon
}

// Start makes the bridge with the tunnel port, the gateway and the numbered ports of pods. It goes with the test.
func Start(ctx context.Context, t testing.TB, pods ...uint32) *Bridge {
	t.Helper()
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: o.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	names := map[uint8]string{}
	for _, table := range flows.Tables() {
		names[uint8(table)] = table.String()
	}
	if _, err := db.EnsureBridge(ctx, ovs.BridgeSpec{
		Name: Name, DatapathType: "netdev", TableNames: names, Prefixes: flows.Prefixes(),
		ExternalIDs: map[string]string{"owner": "twill"},
		Ports: []ovs.PortSpec{
			{Name: "twill-tun", Type: "geneve", OFPort: int(flows.TunnelPort), Options: map[string]string{"remote_ip": "flow", "key": "flow"}},
			{Name: "twill0", Type: "internal", OFPort: int(flows.GatewayPort), MAC: flows.GatewayMAC()},
		},
	}); err != nil {
		t.Fatal(err)
	}
	args := []string{"init"}
	for _, p := range pods {
		name := fmt.Sprintf("p%d", p)
		args = append(args, "--", "add-port", Name, name, "--", "set", "Interface", name, fmt.Sprintf("ofport_request=%d", p))
	}
	if _, err := o.Run(ctx, "ovs-vsctl", args...); err != nil {
		t.Fatal(err)
	}
	daemon, err := ovs.DialDaemon(ctx, o.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(daemon.Close)
	return &Bridge{OVS: o, Switch: ovs.NewSwitch(Name, o.RunDir(), ovs.System()), Daemon: daemon}
}
