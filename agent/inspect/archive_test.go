package inspect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// withoutPrograms is a machine on which nothing is installed.
type withoutPrograms struct{}

func (withoutPrograms) LookPath(string) (string, error) { return "", errors.New("not found") }
func (withoutPrograms) Run(context.Context, io.Reader, string, ...string) (string, string, error) {
	return "", "", errors.New("not found")
}
func report(t *testing.T, w *flows.World) []byte {
	t.Helper()
	world, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var dump strings.Builder
	for _, f := range compiled(t, w).Flows() {
		dump.WriteString(" " + f.String() + "\n")
	}
	var b bytes.Buffer
	if err := inspect.WriteArchive(&b, inspect.Meta{Version: "v1", Node: "alpha", Bridge: bridgeName}, []inspect.File{
		{Name: inspect.FileWorld, Data: world}, {Name: inspect.FileFlows, Data: []byte(dump.String())},
	}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAReportAnswersWithoutANode(t *testing.T) {
	a, err := inspect.ReadArchive(bytes.NewReader(report(t, alpha())))
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Subject(withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), 10, 1)
	if err != nil || len(v.Flows) != 0 || v.Live == 0 || !strings.Contains(v.Untraced, "ovsdb-tool is not installed here") {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.Why(t.Context(), inspect.Question{From: "default/web-0", To: "shop/db"}); err == nil || !strings.Contains(err.Error(), "install openvswitch-switch") {
		t.Errorf("why without Open vSwitch: %v", err)
	}
	list, err := s.Flows(t.Context(), inspect.Filter{Owner: "pod/shop/db"})
	if err != nil || len(list) == 0 || list[0].State != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAReportThatIsCutOrOfAnotherFormatIsRefused(t *testing.T) {
	whole := report(t, alpha())
	for cut := range len(whole) {
		if _, err := inspect.ReadArchive(bytes.NewReader(whole[:cut])); err == nil {
			t.Fatalf("%d of %d bytes were taken for a report", cut, len(whole))
		}
	}
	if _, err := inspect.ReadArchive(strings.NewReader("flows")); err == nil || !strings.Contains(err.Error(), "no report of `twill report`") {
		t.Errorf("text: %v", err)
	}
}
