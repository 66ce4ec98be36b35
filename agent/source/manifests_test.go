package source

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"golang.org/x/tools/txtar"

	"github.com/twill-net/twill/flows"
)

var update = flag.Bool("update", false, "write what the cases in testdata give as what they want")

// silent is a log that nobody reads.
func silent() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// describe is the text of what a source says.
func describe(s Source) string {
	var b strings.Builder
	for _, n := range s.Nodes() {
		fmt.Fprintln(&b, describeNode(n))
	}
	for _, p := range s.Problems() {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func describeNode(n flows.Node) string {
	text := fmt.Sprint("node ", n.Name, " ", n.PodCIDRs, " ", n.Addresses)
	if n.UID != "" {
		text += " uid " + n.UID
	}
	if !n.Created.IsZero() {
		text += " created " + n.Created.Format("2006-01-02T15:04:05Z07:00")
	}
	return text
}

// TestWhatADirectoryOfManifestsSays runs the cases of testdata. The files of a case are called
// STEP/NAME: in each step the directory holds exactly the files of that step. "want" has, for each
// step, whether the source is synced, what it said had changed, its nodes and its problems.
func TestWhatADirectoryOfManifestsSays(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, path := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			var changed []string
			m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent(), OnChange: func(k Key) { changed = append(changed, k.String()) }})
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			want := archive.Files[len(archive.Files)-1]
			if want.Name != "want" {
				t.Fatalf("the last file is %s, not want", want.Name)
			}
			for step := 1; ; step++ {
				prefix := fmt.Sprint(step, "/")
				if !fill(t, dir, prefix, archive.Files) {
					break
				}
				changed = nil
				if err := m.read(); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&got, "step %d: synced %v, changed %v\n%s", step, m.Synced(), changed, describe(m))
			}
			if *update {
				archive.Files[len(archive.Files)-1].Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(archive.Files[len(archive.Files)-1].Data), got.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

// fill makes dir hold exactly the files with that prefix, and says whether there are any.
func fill(t *testing.T, dir, prefix string, files []txtar.File) (found bool) {
	t.Helper()
	old, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if name, ok := strings.CutPrefix(f.Name, prefix); ok {
			found = true
			if name == "nothing" { // an empty directory
				continue
			}
			write(t, filepath.Join(dir, name), string(f.Data))
		}
	}
	return found
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
