package flows_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/twill-net/twill/flows"
)

var update = flag.Bool("update", false, "write what the cases in testdata give as what they want")

// TestTheFlowsOfAWorldAndTheirSentences runs the cases of testdata. Cookies are part of what is
// wanted: should one change without its flow, every node would replace all its flows at an upgrade.
func TestTheFlowsOfAWorldAndTheirSentences(t *testing.T) {
	for _, s := range scenarios(t) {
		t.Run(s.name, func(t *testing.T) {
			got := describe(s)
			i := slices.IndexFunc(s.archive.Files, func(f txtar.File) bool { return f.Name == "want" })
			if i < 0 {
				i = len(s.archive.Files)
				s.archive.Files = append(s.archive.Files, txtar.File{Name: "want"})
			}
			if *update {
				s.archive.Files[i].Data = []byte(got)
				if err := os.WriteFile(s.path, txtar.Format(s.archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(s.archive.Files[i].Data), got); d != "" {
				t.Error(d)
			}
		})
	}
}

// describe is the text of what a case comes to: two lines for each flow, what the switch is told and
// what an operator is told.
func describe(s scenario) string {
	var b strings.Builder
	for _, r := range s.refused {
		fmt.Fprintf(&b, "refused: %s\n", r.Reason)
	}
	wanted, err := compile(s.world)
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	d := flows.NewDesired()
	if _, err := d.Replace(wanted); err != nil {
		fmt.Fprintf(&b, "conflict: %v\n", err)
	}
	names := flows.NamesOf(s.world)
	for _, g := range d.Groups() {
		fmt.Fprintf(&b, "%s\n  %s\n", g, g.Owner)
		for _, sentence := range names.ExplainGroup(g) {
			fmt.Fprintf(&b, "  %s\n", sentence)
		}
	}
	for _, f := range d.Flows() {
		drop := ""
		if f.Drop != "" {
			drop = ", drop " + string(f.Drop)
		}
		fmt.Fprintf(&b, "%s\n  %s, %s%s\n  %s\n", f, f.Table, f.Owner, drop, names.Explain(f))
	}
	return b.String()
}

func TestNoRawFieldIsLeftInASentence(t *testing.T) {
	for _, s := range scenarios(t) {
		names := flows.NamesOf(s.world)
		for _, f := range desired(t, s.world).Flows() {
			text := names.Explain(f)
			if strings.ContainsAny(text, "=_>[]") || strings.Contains(text, "0x") || strings.Contains(text, ", ,") || strings.HasSuffix(text, ": ") {
				t.Errorf("%s: %s\n  explained as %q", s.name, f, text)
			}
		}
	}
}

func TestAPrintedFlowIsReadBackTheSame(t *testing.T) {
	for _, f := range all(t) {
		if m := flows.ParseMatch(f.Match.String()); !cmp.Equal(m, f.Match) {
			t.Errorf("match %s is read as %#v", f.Match, m)
		}
		a, err := flows.ParseActions(f.Actions.String())
		if err != nil || !slices.Equal(a, f.Actions) {
			t.Errorf("actions %s are read as %#v, %v", f.Actions, a, err)
		}
	}
}
