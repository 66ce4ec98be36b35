package flows_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

// FuzzParsedFlowsAreExplained is seeded with every flow of testdata and with what OVS makes of them.
func FuzzParsedFlowsAreExplained(f *testing.F) {
	for _, x := range all(f) {
		f.Add(x.Match.String(), x.Actions.String())
	}
	f.Add("ct_state=+new-est+trk,ip,reg0=0x1/0x1", "ct(commit,zone=65520,exec(move:NXM_NX_REG4[]->NXM_NX_CT_LABEL[]),nat(src=198.18.0.1)),resubmit(,20)")
	f.Add("conj_id=7,ip", "conjunction(7,1/2),learn(table=3,hard_timeout=10,NXM_OF_IP_SRC[]),set_field:0x8001->reg1,output:NXM_NX_REG1[]")
	f.Add("", "set_field:->,goto_table:,check_pkt_larger(,check_pkt_larger)->,output,set_field")
	names := flows.NamesOf(nil)
	f.Fuzz(func(t *testing.T, match, actions string) {
		m := flows.ParseMatch(match)
		if again := flows.ParseMatch(m.String()); again.String() != m.String() {
			t.Errorf("match %q is printed as %q, which is read as %q", match, m, again)
		}
		a, err := flows.ParseActions(actions)
		if err != nil {
			return
		}
		if again, err := flows.ParseActions(a.String()); err != nil || again.String() != a.String() {
			t.Errorf("actions %q are printed as %q, which is read as %q, %v", actions, a, again, err)
		}
		for _, table := range flows.Tables() {
			if names.Explain(flows.Flow{Table: table, Match: m, Actions: a}) == "" {
				t.Errorf("no words for %s actions=%s", m, a)
			}
		}
	})
}

// FuzzTracesAreRead is seeded with what ofproto/trace printed (testdata/traces).
func FuzzTracesAreRead(f *testing.F) {
	seeds, err := os.ReadFile("testdata/traces")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range strings.SplitAfter(string(seeds), "\n\n\n") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := flows.ParseTrace(text, "br-twill")
		if err != nil {
			if got.Datapath != "" && len(got.Steps) > 0 {
				t.Errorf("an error in spite of a whole trace: %v", err)
			}
			return
		}
		if last := got.Last(); last.Cookie != 0 && !slices.ContainsFunc(got.Steps, func(s flows.Step) bool { return s.Cookie == last.Cookie }) {
			t.Errorf("the last step %+v is none of the steps", last)
		}
	})
}
