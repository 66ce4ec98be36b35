package attach

import (
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

func aRecord() record {
	return record{
		network: "twill", gateways: []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8::1")},
		Attachment: flows.Attachment{
			Port: "tw0123456789abc", OFPort: 7, Namespace: "shop", Pod: "web-0", UID: "1234", Sandbox: "sandbox-1", IfName: "eth0",
			NetNS: "/run/netns/1", MAC: net.HardwareAddr{0x0a, 0x77, 198, 18, 0, 2}, MTU: 1450,
			Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("2001:db8::2")},
		},
	}
}

func TestARowSaysAllThereIsToKnow(t *testing.T) {
	row := aRecord().row()
	expect(t, "row", row, ovs.Port{Name: "tw0123456789abc", OFPortRequest: 7, ExternalIDs: map[string]string{
		"twill-pod": "shop/web-0", "twill-uid": "1234", "twill-sandbox": "sandbox-1", "twill-ifname": "eth0",
		"twill-network": "twill", "twill-addresses": "198.18.0.2 2001:db8::2", "twill-gateways": "198.18.0.1 2001:db8::1",
		"twill-mac": "0a:77:c6:12:00:02", "twill-netns": "/run/netns/1", "twill-mtu": "1450",
	}})
	read, err := readRow(row)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "network", read.network, "twill")
	expect(t, "gateways", words(read.gateways), words(aRecord().gateways))
	expect(t, "attachment", read.Attachment, aRecord().Attachment)
	row.OFPort = 9 // OVS gave another number than requested
	if read, err = readRow(row); err != nil || read.OFPort != 9 {
		t.Errorf("number %d, %v; want 9, the one that OVS gave", read.OFPort, err)
	}
}

func TestEveryMalformedIDIsNamedWithItsValueAndStillLeases(t *testing.T) {
	for _, c := range []struct{ key, value, says string }{
		{keyPod, "", "is not NAMESPACE/NAME"},
		{keyPod, "web-0", "is not NAMESPACE/NAME"},
		{keyPod, "/web-0", "is not NAMESPACE/NAME"},
		{keyPod, "shop/", "is not NAMESPACE/NAME"},
		{keyPod, "shop/web-0/x", "is not NAMESPACE/NAME"},
		{keySandbox, "", "is empty"},
		{keyIfName, "", "is empty"},
		{keyAddresses, "", "is no list of addresses"},
		{keyAddresses, "198.18.0.2 here", "is no list of addresses"},
		{keyAddresses, "198.18.0.2/32", "is no list of addresses"},
		{keyAddresses, "fe80::1%eth0", "is no list of addresses"},
		{keyAddresses, "::ffff:198.18.0.2", "is no list of addresses"},
		{keyGateways, "", "one gateway for each address"},
		{keyGateways, "198.18.0.1", "one gateway for each address"},
		{keyGateways, "2001:db8::1 198.18.0.1", "one gateway for each address"},
		{keyGateways, "198.18.0.1 there", "one gateway for each address"},
		{keyMAC, "", "is no Ethernet address"},
		{keyMAC, "0a:77", "is no Ethernet address"},
		{keyMAC, "00:00:00:00:fe:80:00:00", "is no Ethernet address"},
		{keyMTU, "", "is no number of bytes"},
		{keyMTU, "0", "is no number of bytes"},
		{keyMTU, "-1450", "is no number of bytes"},
		{keyMTU, "1450 bytes", "is no number of bytes"},
	} {
		row := aRecord().row()
		row.ExternalIDs[c.key] = c.value
		_, err := readRow(row)
		if err == nil {
			t.Errorf("%s=%q was accepted", c.key, c.value)
			continue
		}
		for _, part := range []string{"port tw0123456789abc", "external_ids:" + c.key + `="` + c.value + `"`, c.says, "ovs-vsctl del-port"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s=%q: the error lacks %q: %v", c.key, c.value, part, err)
			}
		}
		if c.key != keyAddresses && words(addressesOf(row)) != "198.18.0.2 2001:db8::2" {
			t.Errorf("%s=%q: leases %v", c.key, c.value, addressesOf(row))
		}
		if !isOurs(row) {
			t.Errorf("%s=%q: not ours", c.key, c.value)
		}
	}
	row := aRecord().row()
	row.ExternalIDs[keyAddresses] = "198.18.0.2, here ::ffff:198.18.0.9 fe80::1%x 2001:db8::2"
	expect(t, "what a half-readable list leases", words(addressesOf(row)), "198.18.0.9 fe80::1 2001:db8::2")
}

func TestAPortThatOVSCouldNotMakeOrHasNotNumberedIsNamedWithItsPod(t *testing.T) {
	row := aRecord().row()
	row.OFPort, row.Error = -1, "could not open network device"
	_, err := readRow(row)
	expect(t, "failed", errText(err), "port tw0123456789abc of pod shop/web-0: ovs-vswitchd could not make it: could not open network device")
	row.OFPort, row.OFPortRequest = 0, 0
	_, err = readRow(row)
	expect(t, "without a number", errText(err), "port tw0123456789abc of pod shop/web-0 has no OpenFlow number yet")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestPortsWithoutFlowsAreReportedAndForeignOnesLeftAlone(t *testing.T) {
	n := newNode(t, "198.18.0.0/29")
	a := n.start()
	a.add(t, pod(1))
	damaged, failed := aRecord().row(), aRecord().row()
	damaged.Name, failed.Name = "tw0000000000001", "tw0000000000002"
	delete(damaged.ExternalIDs, keyPod)
	damaged.ExternalIDs[keyAddresses], failed.ExternalIDs[keyAddresses] = "198.18.0.3", "198.18.0.4"
	failed.ExternalIDs[keyGateways] = "198.18.0.1"
	failed.OFPort, failed.Error = -1, "no such device"
	foreign := ovs.Port{Name: "eth7", OFPort: 3, ExternalIDs: map[string]string{"iface-id": "x"}}
	for _, p := range []ovs.Port{damaged, failed, foreign, {Name: "twill0", Type: "internal"}} {
		n.rows[p.Name] = p
	}
	expect(t, "problems", strings.Join(a.Problems(), "\n"), strings.Join([]string{
		"port eth7 of bridge br-twill has no ids of Twill and gets no flows; if nobody needs it: ovs-vsctl del-port br-twill eth7",
		`port tw0000000000001: external_ids:twill-pod="" is not NAMESPACE/NAME; delete the pod, or the port with ovs-vsctl del-port`,
		"port tw0000000000002 of pod shop/web-0: ovs-vswitchd could not make it: no such device",
	}, "\n"))
	expect(t, "owners of flows", len(a.Attachments()), 1)
	expect(t, "a new pod's address", words(a.add(t, pod(2)).Addresses), "198.18.0.5")
	if p, ok := n.rows[linkOf(pod(2))]; !ok || p.OFPort != 2 {
		t.Errorf("a new pod's port: %+v, want number 2", p)
	}
	p3 := a.add(t, pod(3))
	expect(t, "number beside that of a foreign port", n.rows[p3.HostInterface].OFPort, 4)
	if err := a.GC(t.Context(), pod(0)); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.rows["eth7"]; !ok {
		t.Error("GC removed a foreign port")
	}
	if _, ok := n.rows["twill0"]; !ok {
		t.Error("GC removed the gateway")
	}
}

func TestLinkNamesFitAreStableAndAreRecognised(t *testing.T) {
	name := linkName("sandbox-1", "eth0")
	if name != linkName("sandbox-1", "eth0") || name == linkName("sandbox-1", "eth1") || name == linkName("sandbox-2", "eth0") {
		t.Error("names are not one for each interface of each sandbox")
	}
	for s, want := range map[string]bool{
		name: true, "tw0123456789abc": true, "tw0123456789ab": false, "tw0123456789abcd": false, "tw0123456789abg": false,
		"tw0123456789ABC": false, "twill0": false, "veth0123456789a": false, "": false,
	} {
		expect(t, s, IsLinkName(s), want)
	}
	if len(name) > 15 {
		t.Errorf("%s is longer than 15 characters", name)
	}
}

func FuzzARowIsReadBackAsItWasWrittenOrRefused(f *testing.F) {
	add := func(r ovs.Port) {
		ids := r.ExternalIDs
		f.Add(ids[keyPod], ids[keyUID], ids[keySandbox], ids[keyIfName], ids[keyAddresses], ids[keyGateways], ids[keyMAC], ids[keyMTU], r.OFPortRequest, r.OFPort)
	}
	add(aRecord().row())
	add(ovs.Port{})
	f.Add("a/b", "", "s", "i", "::ffff:1.2.3.4", "fe80::1%x", "0a-77-c6-12-00-02", "+5", -1, 1)
	f.Fuzz(func(t *testing.T, pod, uid, sandbox, ifName, addresses, gateways, mac, mtu string, request, number int) {
		p := ovs.Port{Name: "tw0123456789abc", OFPortRequest: request, OFPort: number, ExternalIDs: map[string]string{
			keyPod: pod, keyUID: uid, keySandbox: sandbox, keyIfName: ifName, keyAddresses: addresses, keyGateways: gateways, keyMAC: mac, keyMTU: mtu,
		}}
		r, err := readRow(p)
		if err != nil {
			if r.Port != "" || !strings.Contains(err.Error(), "port tw0123456789abc") {
				t.Errorf("refused with %+v and %v", r, err)
			}
			return
		}
		expect(t, "leases", words(addressesOf(p)), words(r.Addresses))
		again, err := readRow(r.row())
		if err != nil {
			t.Fatalf("read once, written, refused: %v", err)
		}
		expect(t, "read again", again.Attachment, r.Attachment)
		if !maps.Equal(again.row().ExternalIDs, r.row().ExternalIDs) {
			t.Errorf("%v is not %v", again.row(), r.row())
		}
		if r.OFPort == 0 || len(r.gateways) != len(r.Addresses) {
			t.Errorf("number %d, gateways %v of %v", r.OFPort, r.gateways, r.Addresses)
		}
	})
}
