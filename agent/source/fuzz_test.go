package source

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/tools/txtar"
)

// FuzzLoad writes anything at all into a file that was good: either it is taken, or what it said
// before stays in force and there is a Problem. Beside it, another file is never touched by that.
func FuzzLoad(f *testing.F) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range cases {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data, filepath.Ext(file.Name) == ".json")
		}
	}
	f.Add([]byte("a: &a [*a]"), false)
	f.Add([]byte("kind: List\nitems: [{kind: List, items: [null, 1, [], {kind: Node, apiVersion: v1}]}]"), false)
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		name := "fuzzed.yaml"
		if isJSON {
			name = "fuzzed.json"
		}
		dir := t.TempDir()
		m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent()})
		must(t, err)
		good := `{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "good", "uid": "1"}}`
		write(t, filepath.Join(dir, name), good)
		write(t, filepath.Join(dir, "a-neighbour.yaml"), manifest("neighbour", "198.51.100.1"))
		must(t, m.read())
		before := m.Nodes()
		if len(before) != 2 {
			t.Fatalf("nodes = %v", before)
		}

		write(t, filepath.Join(dir, name), string(data))
		must(t, m.read())
		after := describe(m)
		key := Key{Kind: fileKind, Name: name}
		broken := slices.ContainsFunc(m.Problems(), func(p Problem) bool { return p.Key == key })
		names := map[string]bool{}
		for _, n := range m.Nodes() {
			names[n.Name] = true
		}
		if !names["neighbour"] {
			t.Errorf("the neighbour is lost:\n%s", after)
		}
		if (broken || len(data) == 0) && !names["good"] {
			t.Errorf("the last good state is lost:\n%s", after)
		}
		// Reading the same again changes nothing.
		must(t, m.read())
		if again := describe(m); again != after {
			t.Errorf("the same file, read twice:\n%s\n%s", after, again)
		}
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(good), 0o644))
		must(t, m.read())
		if healed := m.Nodes(); len(healed) != 2 || len(m.Problems()) > 1 {
			t.Errorf("not healed by good content: %s", describe(m))
		}
	})
}
