package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/ovsd"
)

// TestALinkBelowTheBridgeThatAnswersARPIsNamed: with the node's address on br-phy and eth0 a port of br-phy, the kernel
// must not answer on eth0.
func TestALinkBelowTheBridgeThatAnswersARPIsNamed(t *testing.T) {
	ctx, o, db := dummyOVS(t)
	for _, command := range [][]string{
		{"add-br", "br-phy", "--", "set", "Bridge", "br-phy", "datapath_type=netdev"},
		{"--no-wait", "add-port", "br-phy", "eth0"},
		{"--no-wait", "add-port", "br-phy", "tunnel", "--", "set", "Interface", "tunnel", "type=geneve", "options:remote_ip=198.51.100.2"},
		{"--no-wait", "add-br", "br-kernel", "--", "set", "Bridge", "br-kernel", "datapath_type=system", "--", "add-port", "br-kernel", "eth1"},
	} {
		if _, err := o.Run(ctx, "ovs-vsctl", append([]string{"--timeout=10"}, command...)...); err != nil {
			t.Fatal(err)
		}
	}
	for len(db.Ports("br-kernel")) < 2 {
		select {
		case <-db.Changed():
		case <-ctx.Done():
			t.Fatal("the ports were not seen")
		}
	}
	const remedy = "sysctl -w net.ipv4.conf.eth0.arp_ignore=1, and in /etc/sysctl.d"
	for _, c := range []struct {
		what, underlay, all, own string
		result, remedy           string
	}{
		{"answers", "br-phy", "0", "0", CheckFailed, remedy},
		{"unknown", "br-phy", "", "", CheckFailed, remedy},
		{"told on the link", "br-phy", "0", "1", CheckOK, ""},
		{"told on all", "br-phy", "2", "0", CheckOK, ""},
		{"the kernel's datapath", "br-kernel", "0", "0", "", ""},
		{"a link that is a port itself", "eth0", "0", "0", "", ""},
		{"a link of no bridge", "eth2", "0", "0", "", ""},
	} {
		files := map[string]string{}
		if c.all != "" {
			files["sys/net/ipv4/conf/all/arp_ignore"], files["sys/net/ipv4/conf/eth0/arp_ignore"] = c.all+"\n", c.own+"\n"
		}
		check := &checker{proc: fakeProc(t, files), db: db}
		check.arp(c.underlay)
		var want []Finding
		if c.result != "" {
			want = []Finding{{Check: "ARP", Result: c.result, Remedy: c.remedy}}
		}
		got := slices.Clone(check.findings)
		for i := range got {
			if got[i].Detail == "" {
				t.Errorf("%s: no detail", c.what)
			}
			got[i].Detail = ""
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: found %+v, want %+v", c.what, check.findings, want)
		}
	}
}

// dummyOVS is an Open vSwitch that needs no links, a connection to its database, and a context for half a minute.
func dummyOVS(t *testing.T) (context.Context, *ovsd.OVS, *ovs.DB) {
	t.Helper()
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: o.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return ctx, o, db
}
