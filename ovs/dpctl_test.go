package ovs

import "testing"

func TestSectionsOfADatapathFlowAreFoundByTheirWholeName(t *testing.T) {
	const flow = `recirc_id(0),in_port(2),eth_type(0x0800),ipv4(src=198.18.1.2/255.255.0.0,proto=6,frag=no),tcp(dst=80)`
	expect(t, "fields", SectionFields(flow, "ipv4"), map[string]string{"src": "198.18.1.2/255.255.0.0", "proto": "6", "frag": "no"})
	if fields := SectionFields(flow, "type"); fields != nil {
		t.Errorf("there is no section type: %v", fields)
	}
	if fields := SectionFields("ipv4(src=198.18.1.2", "ipv4"); fields != nil {
		t.Errorf("a section that does not end: %v", fields)
	}
	inside, ok := Section(flow, "eth_type")
	expect(t, "eth_type", inside, "0x0800")
	expect(t, "eth_type is there", ok, true)
}
