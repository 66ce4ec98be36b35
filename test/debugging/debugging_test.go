// Package debugging_test keeps docs/debugging-examples.md true.
package debugging_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/ovsd"
)

// TestTheTenProblemsAreStillSolved runs every command of docs/debugging-examples.md on a fresh lab. The script itself
// fails when a command ends otherwise than it should; the headings tell that the page in the repository is of this script.
func TestTheTenProblemsAreStillSolved(t *testing.T) {
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
	if strings.Join(now, "\n") != strings.Join(then, "\n") || len(now) < 30 {
		t.Errorf("the page is not of this script; write it again:\n%s\n---\n%s", strings.Join(now, "\n"), strings.Join(then, "\n"))
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
