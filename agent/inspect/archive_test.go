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

// lastPackets is what an agent tells of drops: at a flow of the dump, and by Open vSwitch itself.
const lastPackets = `[
{"reason":"spoofed","owner":"pod/default/web-0","sentence":"…","packets":9,"bytes":900,"last":[{"from":"pod default/web-0","protocol":"tcp","source":"203.0.113.9","destination":"198.18.1.3","sourcePort":40000,"destinationPort":80,"more":8,"ago":1.5}]},
{"reason":"port-gone","owner":"","sentence":"…","packets":0,"bytes":0,"last":[{"from":"the tunnel","protocol":"icmp","source":"198.18.2.9","destination":"198.18.1.2"}]},
{"reason":"transit","owner":"pipeline","sentence":"…","packets":1,"bytes":100}
]`

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
		{Name: inspect.FileDrops, Data: []byte(lastPackets)},
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

// TestAReportTellsTheLastPacketsThatWereDropped: they are in no dump of flows, so the agent has told them.
func TestAReportTellsTheLastPacketsThatWereDropped(t *testing.T) {
	a, err := inspect.ReadArchive(bytes.NewReader(report(t, alpha())))
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Subject(withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Drops(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	told := map[string][]inspect.DroppedPacket{}
	for _, d := range list {
		if len(d.Last) > 0 {
			told[string(d.Reason)+" "+string(d.Owner)] = d.Last
		}
	}
	if got := told["spoofed pod/default/web-0"]; len(told) != 2 || len(got) != 1 || got[0].SourcePort != 40000 || got[0].More != 8 || got[0].Ago != 1.5 {
		t.Errorf("%+v", told)
	}
	if got := told["port-gone "]; len(got) != 1 || got[0].Source != "198.18.2.9" {
		t.Errorf("%+v", told)
	}
	a.Files[inspect.FileDrops] = []byte(`{"half`)
	if _, err := a.Subject(withoutPrograms{}); err == nil || !strings.Contains(err.Error(), "drops.json of the report: ") {
		t.Errorf("half of the file: %v", err)
	}
	delete(a.Files, inspect.FileDrops) // an agent that tells none
	s, err = a.Subject(withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err = s.Drops(t.Context()); err != nil || len(list) == 0 {
		t.Errorf("%d reasons, %v", len(list), err)
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
