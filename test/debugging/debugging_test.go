// Package debugging_test keeps docs/debugging-examples.md true.
package debugging_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/ovsd"
)

// TestTheProblemsAreStillSolved runs every command of docs/debugging-examples.md on a fresh lab. The script itself
// fails when a command ends otherwise than it should; the headings tell that the page in the repository is of this script.
func TestTheProblemsAreStillSolved(t *testing.T) {
	ovsd.Need(t, "ovs-vswitchd")
	if os.Getuid() != 0 {
		ovsd.Missing(t, "a lab needs root")
	}
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../../cmd/twill", "../../cmd/twill-cni", "../../cmd/twill-lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	var out, errs bytes.Buffer
	script := exec.CommandContext(t.Context(), "./debugging.sh", bin)
	script.Stdout, script.Stderr = &out, &errs
	if err := script.Run(); err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	page, err := os.ReadFile("../../docs/debugging-examples.md")
	if err != nil {
		t.Fatal(err)
	}
	now, then := commands(out.String()), commands(string(page))
	if strings.Join(now, "\n") != strings.Join(then, "\n") || len(now) < 55 {
		t.Errorf("the page is not of this script; write it again:\n%s\n---\n%s", strings.Join(now, "\n"), strings.Join(then, "\n"))
	}
}

// TestTheManualHasEachTableAndDrop: docs/debugging.md is what a reader of plain ovs-ofctl has.
func TestTheManualHasEachTableAndDrop(t *testing.T) {
	page, err := os.ReadFile("../../docs/debugging.md")
	if err != nil {
		t.Fatal(err)
	}
	_, plain, ok := strings.Cut(string(page), "\n## Reading plain Open vSwitch\n")
	if !ok {
		t.Fatal("the part about plain Open vSwitch is gone")
	}
	numbers, names := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(plain) {
		cells := strings.Split(line, " | ")
		if len(cells) != 3 || !strings.HasPrefix(line, "| ") {
			continue
		}
		for _, n := range strings.Split(strings.TrimPrefix(cells[0], "| "), ", ") {
			numbers[n] = true
		}
		for _, n := range strings.Split(cells[1], ", ") {
			names[n] = true
		}
	}
	for _, table := range flows.Tables() {
		if !numbers[fmt.Sprint(uint8(table))] || !names[table.String()] {
			t.Errorf("no line has table %d %s", table, table)
		}
	}
	source, err := os.ReadFile("../../flows/pipeline.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := regexp.MustCompile(`Drop\w+ +Reason = "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(reasons) < 20 {
		t.Errorf("only %d reasons of drops were found in flows/pipeline.go", len(reasons))
	}
	for _, r := range reasons {
		if !numbers[r[1]] {
			t.Errorf("no line explains the drop %s", r[1])
		}
	}
	for _, zone := range []int{flows.ZoneService, flows.ZoneMasquerade, flows.PolicyZone} {
		if !strings.Contains(plain, fmt.Sprintf("%d (%#x)", zone, zone)) {
			t.Errorf("zone %d (%#x) is not there", zone, zone)
		}
	}
}

// commands are the headings and the command lines of a page.
func commands(page string) []string {
	var out []string
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "## ") || strings.HasPrefix(line, "node-") && strings.Contains(line, "# ") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
