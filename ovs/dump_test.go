package ovs

import (
	"os"
	"strings"
	"testing"
)

func TestParseFlowsReadsEveryKindOfDump(t *testing.T) {
	first := Installed{Priority: 100, Cookie: 0x10, Text: "ip,in_port=1,nw_src=198.51.100.0/24", Actions: "set_field:0x5->reg0,ct(table=10,zone=65520,nat)"}
	named := first
	named.TableName, named.Text, named.Actions = "classify", "ip,in_port=p1,nw_src=198.51.100.0/24", `set_field:0x5->reg0,ct(table="spoof guard",zone=65520,nat)`
	guard := Installed{TableName: "spoof guard", Priority: 32768, Text: `in_port="my port, actions=x"`, Actions: "drop"}
	for _, c := range []struct {
		name, dump string
		want       []Installed
	}{
		{"nothing", "", nil},
		{"only a header", "OFPST_FLOW reply (OF1.5) (xid=0x2):\n", nil},
		{"statistics", "OFPST_FLOW reply (OF1.5) (xid=0x2): flags=[more]\n" +
			" cookie=0x10, duration=0.005s, table=0, n_packets=3, n_bytes=294, idle_age=0, priority=100,ip,in_port=1,nw_src=198.51.100.0/24 actions=set_field:0x5->reg0,ct(table=10,zone=65520,nat)\n",
			[]Installed{with(first, 3, 294)}},
		{"no statistics, no cookie, no table", " priority=0 actions=drop\n", []Installed{{Actions: "drop"}}},
		{"flags between the fields", " cookie=0x3, table=30, idle_timeout=60, send_flow_rem reset_counts importance=4, actions=NORMAL\n",
			[]Installed{{Table: 30, Cookie: 3, Priority: 32768, Actions: "NORMAL"}}},
		{"names", ` cookie=0x10, duration=0.010s, table=classify, n_packets=0, n_bytes=0, idle_age=0, priority=100,ip,in_port=p1,nw_src=198.51.100.0/24 actions=set_field:0x5->reg0,ct(table="spoof guard",zone=65520,nat)` + "\n",
			[]Installed{named}},
		{"names with spaces, commas and traps", ` table="spoof guard", in_port="my port, actions=x" actions=drop` + "\n", []Installed{guard}},
		{"what OVS shows by itself", "duration=5s, n_packets=1, n_bytes=2, priority=1,table_id=254,actions=drop\n",
			[]Installed{{Table: 254, Priority: 1, Packets: 1, Bytes: 2, Actions: "drop"}}},
		{"a shell prompt around it", "$ ovs-ofctl dump-flows br0\n priority=1 actions=drop\n$\n", []Installed{{Priority: 1, Actions: "drop"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseFlows(strings.NewReader(c.dump))
			if err != nil {
				t.Fatal(err)
			}
			expect(t, "flows", got, c.want)
		})
	}
}

func with(f Installed, packets, bytes uint64) Installed {
	f.Packets, f.Bytes = packets, bytes
	return f
}

func TestParseFlowsNamesTheLineThatMakesNoSense(t *testing.T) {
	for dump, want := range map[string]string{
		" actions=drop\n cookie=zz, actions=drop\n": "line 2 of the flow dump: cookie",
		" table=256, actions=drop\n":                "line 1 of the flow dump: table",
		" table=, actions=drop\n":                   "line 1 of the flow dump: table: no number and no name",
		" priority=65536 actions=drop\n":            "line 1 of the flow dump: priority",
		" n_packets=-1, actions=drop\n":             "line 1 of the flow dump: n_packets",
	} {
		_, err := ParseFlows(strings.NewReader(dump))
		expectError(t, err, want)
	}
}

// FuzzParseFlows starts from dumps of a real bridge: no input may crash the parser, or make it invent flows.
func FuzzParseFlows(f *testing.F) {
	real, err := os.ReadFile("testdata/dump-flows.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(real))
	for line := range strings.Lines(string(real)) {
		f.Add(line)
	}
	f.Add(` table="spoof guard", in_port="a\"b", actions=drop`)
	f.Add(" table=((((, actions=actions=")
	f.Fuzz(func(t *testing.T, dump string) {
		flows, err := ParseFlows(strings.NewReader(dump))
		if err != nil {
			return
		}
		for _, one := range flows {
			if one.TableName != "" && one.Table != 0 {
				t.Errorf("both a name and a number: %+v", one)
			}
			if strings.Contains(one.Actions, "\n") || strings.Contains(one.Text, "\n") {
				t.Errorf("a flow is more than its line: %+v", one)
			}
		}
		if lines := strings.Count(dump, "actions="); len(flows) > lines {
			t.Errorf("%d flows of %d", len(flows), lines)
		}
	})
}
