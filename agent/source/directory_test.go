package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// manifest is a Node with that address.
func manifest(name, address string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Node
metadata: {name: %s}
status: {addresses: [{type: InternalIP, address: %s}]}
`, name, address)
}

// following is a running source at a new directory.
func following(t *testing.T) (dir string, m *Manifests, w *witness) {
	t.Helper()
	dir, w = filepath.Join(t.TempDir(), "manifests"), newWitness(t)
	write(t, filepath.Join(dir, "a.yaml"), manifest("a", "198.51.100.1"))
	m, err := NewManifests(ManifestsConfig{Dir: dir, Log: w.log, OnChange: w.onChange})
	if err != nil {
		t.Fatal(err)
	}
	running(t, m)
	w.until("it is synced", m.Synced)
	w.until("it is alive", func() bool { return m.Alive() == nil })
	if d := cmp.Diff("node a [] [198.51.100.1]\n", describe(m)); d != "" {
		t.Fatal(d)
	}
	return dir, m, w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesThatAreWrittenRenamedAndDeletedAreFollowed(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	write(t, filepath.Join(dir, "b.yaml"), manifest("b", "198.51.100.2"))
	w.says(m, "node a [] [198.51.100.1]\nnode b [] [198.51.100.2]\n")

	// As editors and atomic writers do: written elsewhere, renamed over.
	write(t, filepath.Join(dir, ".a.yaml.tmp"), manifest("a", "198.51.100.11"))
	must(t, os.Rename(filepath.Join(dir, ".a.yaml.tmp"), filepath.Join(dir, "a.yaml")))
	w.says(m, "node a [] [198.51.100.11]\nnode b [] [198.51.100.2]\n")

	// As vim does: the old one is moved aside, the new one is written under its name.
	must(t, os.Rename(filepath.Join(dir, "b.yaml"), filepath.Join(dir, "b.yaml~")))
	write(t, filepath.Join(dir, "b.yaml"), manifest("b", "198.51.100.22"))
	w.says(m, "node a [] [198.51.100.11]\nnode b [] [198.51.100.22]\n")

	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	w.says(m, "node b [] [198.51.100.22]\n")
}

func TestABrokenFileKeepsWhatItSaidUntilItIsFixed(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	path := filepath.Join(dir, "a.yaml")
	write(t, path, "{broken")
	w.says(m, "node a [] [198.51.100.1]\n"+
		"a.yaml:1: broken YAML: did not find expected ',' or '}'; its last good content stays in force until the file is corrected or removed.\n")
	write(t, filepath.Join(dir, "b.yaml"), manifest("b", "198.51.100.2"))
	w.until("others are followed all the while", func() bool { return len(m.Nodes()) == 2 })
	write(t, path, manifest("a", "198.51.100.11"))
	w.says(m, "node a [] [198.51.100.11]\nnode b [] [198.51.100.2]\n")
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := strings.Join(w.lines, "\n")
	for _, want := range []string{"warning a.yaml:1: broken YAML: ", "info Resolved: a.yaml:1: broken YAML: "} {
		if !strings.Contains(lines, want) {
			t.Errorf("the log lacks %q:\n%s", want, lines)
		}
	}
}

func TestARedirectionThatHasJustEmptiedAFileTakesNothingAway(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	f, err := os.Create(filepath.Join(dir, "a.yaml"))
	must(t, err)
	defer f.Close()
	w.says(m, "node a [] [198.51.100.1]\n"+
		"a.yaml:1: is empty; delete it if its objects shall go; its last good content stays in force until the file is corrected or removed.\n")
	_, err = f.WriteString(manifest("a", "198.51.100.11"))
	must(t, err)
	w.says(m, "node a [] [198.51.100.11]\n")
}

// TestAConfigMapVolumeIsFollowed swaps the symbolic link ..data as a kubelet does.
func TestAConfigMapVolumeIsFollowed(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	swap := func(version string, files map[string]string) {
		for name, data := range files {
			write(t, filepath.Join(dir, version, name), data)
		}
		must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	swap("..1", map[string]string{"nodes.yaml": manifest("a", "198.51.100.1"), "more.yaml": manifest("b", "198.51.100.2")})
	must(t, os.Symlink("..data/nodes.yaml", filepath.Join(dir, "nodes.yaml")))
	must(t, os.Symlink("..data/more.yaml", filepath.Join(dir, "more.yaml")))
	w.says(m, "node a [] [198.51.100.1]\nnode b [] [198.51.100.2]\n")
	swap("..2", map[string]string{"nodes.yaml": manifest("a", "198.51.100.11") + manifest("c", "198.51.100.3")})
	w.says(m, "node a [] [198.51.100.11]\nnode c [] [198.51.100.3]\n")
}

func TestADirectoryThatVanishesTakesNothingWithItAndIsFollowedWhenItIsBack(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	must(t, os.Rename(dir, dir+".away"))
	w.until("the loss was seen", func() bool { return m.Alive() != nil })
	if want := "manifest directory " + dir + " is not followed since 20"; m.Alive() == nil || !strings.HasPrefix(m.Alive().Error(), want) {
		t.Errorf("Alive() = %v, want %s…", m.Alive(), want)
	}
	w.says(m, "node a [] [198.51.100.1]\n")
	// What happens to the old one is nobody's business now.
	write(t, filepath.Join(dir+".away", "x.yaml"), manifest("x", "198.51.100.9"))
	must(t, os.Mkdir(dir+".new", 0o755))
	write(t, filepath.Join(dir+".new", "b.yaml"), manifest("b", "198.51.100.2"))
	must(t, os.Rename(dir+".new", dir))
	w.says(m, "node b [] [198.51.100.2]\n")
	w.until("it is alive", func() bool { return m.Alive() == nil })
	write(t, filepath.Join(dir, "c.yaml"), manifest("c", "198.51.100.3"))
	w.says(m, "node b [] [198.51.100.2]\nnode c [] [198.51.100.3]\n")
}

func TestADirectoryIsFollowedWhenItIsBackThoughItsParentWasGoneToo(t *testing.T) {
	t.Parallel()
	dir, m, w := following(t)
	parent := filepath.Dir(dir)
	must(t, os.RemoveAll(parent))
	w.until("the loss was seen", func() bool { return m.Alive() != nil })
	write(t, filepath.Join(dir, "b.yaml"), manifest("b", "198.51.100.2"))
	w.says(m, "node b [] [198.51.100.2]\n")
	write(t, filepath.Join(dir, "c.yaml"), manifest("c", "198.51.100.3"))
	w.says(m, "node b [] [198.51.100.2]\nnode c [] [198.51.100.3]\n")
}

func TestADirectoryThatIsALinkIsFollowedToWhereItLeads(t *testing.T) {
	t.Parallel()
	dir, w := t.TempDir(), newWitness(t)
	write(t, filepath.Join(dir, "v1", "a.yaml"), manifest("a", "198.51.100.1"))
	write(t, filepath.Join(dir, "v2", "a.yaml"), manifest("a", "198.51.100.2"))
	link := filepath.Join(dir, "current")
	must(t, os.Symlink("v1", link))
	m, err := NewManifests(ManifestsConfig{Dir: link, Log: w.log, OnChange: w.onChange})
	must(t, err)
	running(t, m)
	w.says(m, "node a [] [198.51.100.1]\n")
	must(t, os.Symlink("v2", link+".tmp"))
	must(t, os.Rename(link+".tmp", link))
	w.says(m, "node a [] [198.51.100.2]\n")
	write(t, filepath.Join(dir, "v2", "a.yaml"), manifest("a", "198.51.100.3"))
	w.says(m, "node a [] [198.51.100.3]\n")
}

func TestADirectoryThatIsMissingAtStartIsFatal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nowhere")
	m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent()})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err = m.Run(ctx)
	if want := "manifest directory " + dir + " cannot be read; create it or correct its name: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Run() = %v, want %s…", err, want)
	}
	if m.Synced() || m.Alive() == nil {
		t.Errorf("synced %v, alive %v", m.Synced(), m.Alive())
	}
}

func TestAFileThatCannotBeReadKeepsWhatItSaid(t *testing.T) {
	dir := t.TempDir()
	m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent()})
	must(t, err)
	path := filepath.Join(dir, "a.yaml")
	write(t, path, manifest("a", "198.51.100.1"))
	must(t, m.read())
	// Permissions do not stop root; a link to itself does.
	must(t, os.Remove(path))
	must(t, os.Symlink("a.yaml", path))
	must(t, m.read())
	got := describe(m)
	if !strings.HasPrefix(got, "node a [] [198.51.100.1]\na.yaml:1: cannot be read: ") {
		t.Errorf("got %s", got)
	}
	must(t, os.Remove(path))
	write(t, path, manifest("a", "198.51.100.1"))
	must(t, m.read())
	if d := cmp.Diff("node a [] [198.51.100.1]\n", describe(m)); d != "" {
		t.Errorf("readable again:\n%s", d)
	}
}

func TestEventsOfManifestsAreLoggedAndTheLatestAreKept(t *testing.T) {
	w := newWitness(t)
	m, err := NewManifests(ManifestsConfig{Dir: t.TempDir(), Log: w.log})
	must(t, err)
	for i := range ringSize + 1 {
		m.Event(Ref{Key{Kind: "Node", Name: "a"}, "uid"}, EventWarning, "Refused", fmt.Sprint("message ", i))
	}
	events := m.Events()
	if len(events) != ringSize || events[0].Message != "message 1" || events[ringSize-1].Message != fmt.Sprint("message ", ringSize) {
		t.Errorf("%d events, from %v to %v", len(events), events[0], events[len(events)-1])
	}
	if w.lines[0] != "warning message 0" {
		t.Errorf("log line %q", w.lines[0])
	}
}
