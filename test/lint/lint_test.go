// Package lint_test seeds a violation of every rule that lint.sh checks and wants to see each refused:
// a linter that is set up wrongly is silent, and looks just like one that is content.
package lint_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// checkout writes the files of the archive, and go.mod with go.sum of the real module beside them, so
// that imports can be resolved.
func checkout(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, data)
	}
	for _, f := range txtar.Parse(archive).Files {
		// Spelt out in the archive, these two would be refused there.
		text := strings.NewReplacer("CHECKOUT", dir, "MIRROR", "mirror.example."+"corp").Replace(string(f.Data))
		if strings.HasSuffix(f.Name, "long.go") {
			text += strings.Repeat("// one more line\n", 500)
		}
		write(f.Name, []byte(text))
	}
	return dir
}

func lint(t *testing.T, dir string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "./lint.sh", dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestEveryRuleRefusesWhatItIsFor(t *testing.T) {
	archive, err := os.ReadFile("testdata/violations.txtar")
	if err != nil {
		t.Fatal(err)
	}
	out, err := lint(t, checkout(t, archive))
	if err == nil {
		t.Error("lint.sh succeeded")
	}
	// The archive's comment lists what has to be said.
	for want := range strings.Lines(string(txtar.Parse(archive).Comment)) {
		want = strings.TrimSpace(want)
		if want == "" || strings.HasPrefix(want, "#") {
			continue
		}
		if !strings.Contains(out, want) {
			t.Errorf("not refused: %s", want)
		}
	}
	if t.Failed() {
		t.Logf("lint.sh said\n%s", out)
	}
}

func TestCodeThatKeepsTheRulesPasses(t *testing.T) {
	archive, err := os.ReadFile("testdata/good.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := lint(t, checkout(t, archive)); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// On a machine without a cache of modules every go command tells what it fetches, and that is no finding.
func TestFetchingModulesIsNoFinding(t *testing.T) {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	talks := "#!/bin/sh\necho 'go: downloading example.com/module v1.0.0' >&2\nexec '" + goCommand + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(talks), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	archive, err := os.ReadFile("testdata/good.txtar")
	if err != nil {
		t.Fatal(err)
	}
	out, err := lint(t, checkout(t, archive))
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}
