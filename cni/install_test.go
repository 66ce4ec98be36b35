package cni

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func TestAConflistSuitsOldAndNewRuntimes(t *testing.T) {
	got, err := Conflist(ConflistConfig{Portmap: true, Bandwidth: true, Chain: []json.RawMessage{[]byte(`{"type":"tuning","sysctl":{}}`)}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "twill",
  "plugins": [
    {
      "type": "twill-cni",
      "socket": "/run/twill/cni.sock"
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    },
    {
      "type": "bandwidth",
      "capabilities": {
        "bandwidth": true
      }
    },
    {
      "type": "tuning",
      "sysctl": {}
    }
  ]
}
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("conflist (-want +got):\n%s", diff)
	}
	list, err := libcni.NetworkConfFromBytes(got)
	if err != nil || list.CNIVersion != "1.1.0" || len(list.Plugins) != 4 {
		t.Errorf("libcni reads %+v, %v", list, err)
	}
	if old, err := Conflist(ConflistConfig{CNIVersion: "1.0.0"}); err != nil || strings.Contains(string(old), "cniVersions") {
		t.Errorf("1.0.0: %s, %v", old, err)
	}
}

func TestAConflistThatNoRuntimeCouldUseIsRefused(t *testing.T) {
	for says, c := range map[string]ConflistConfig{
		`CNI version "2.0.0" is not supported`: {CNIVersion: "2.0.0"},
		`name "a/b"`:                           {Name: "a/b"},
		`socket "cni.sock" is not an absolute`: {Socket: "cni.sock"},
		`chained plugin 0, {}, is not an obj`:  {Chain: []json.RawMessage{[]byte(`{}`)}},
	} {
		if _, err := Conflist(c); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}

func installation(t *testing.T) InstallConfig {
	t.Helper()
	dir := t.TempDir()
	c := InstallConfig{Plugin: filepath.Join(dir, "image", "twill-cni"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d")}
	var err error
	if c.Conflist, err = Conflist(ConflistConfig{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(c.Plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, c.Plugin, "the plugin")
	return c
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func install(t *testing.T, c InstallConfig) []string {
	t.Helper()
	changed, err := Install(c)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Mode().String()+" "+e.Name())
	}
	return names
}

func TestInstallWritesOnlyWhatDiffersPluginFirst(t *testing.T) {
	c := installation(t)
	plugin, conf := filepath.Join(c.BinDir, "twill-cni"), filepath.Join(c.ConfDir, "05-twill.conflist")
	if got := install(t, c); !slices.Equal(got, []string{plugin, conf}) {
		t.Errorf("first: %v", got)
	}
	if got := install(t, c); got != nil {
		t.Errorf("again: %v", got)
	}
	write(t, c.Plugin, "the next plugin")
	if got := install(t, c); !slices.Equal(got, []string{plugin}) {
		t.Errorf("after an upgrade: %v", got)
	}
	write(t, conf, "{}")
	if got := install(t, c); !slices.Equal(got, []string{conf}) {
		t.Errorf("after somebody edited it: %v", got)
	}
	if err := os.Chmod(plugin, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := install(t, c); !slices.Equal(got, []string{plugin}) {
		t.Errorf("after somebody took its mode: %v", got)
	}
}

func TestInstallCleansUpAfterItsKilledPredecessorsAlone(t *testing.T) {
	c := installation(t)
	for _, dir := range []string{c.BinDir, c.ConfDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(c.BinDir, ".twill-cni.new-123"), "half")
	write(t, filepath.Join(c.ConfDir, ".05-twill.conflist.new-123"), "half")
	write(t, filepath.Join(c.ConfDir, "10-other.conflist"), "{}")
	install(t, c)
	if got := names(t, c.BinDir); !slices.Equal(got, []string{"-rwxr-xr-x twill-cni"}) {
		t.Errorf("bin: %v", got)
	}
	if got := names(t, c.ConfDir); !slices.Equal(got, []string{"-rw------- 05-twill.conflist", "-rw-r--r-- 10-other.conflist"}) {
		t.Errorf("net.d: %v", got)
	}
	removed, err := Uninstall(c)
	if err != nil || !slices.Equal(removed, []string{filepath.Join(c.ConfDir, "05-twill.conflist"), filepath.Join(c.BinDir, "twill-cni")}) {
		t.Errorf("uninstall: %v, %v", removed, err)
	}
	if removed, err := Uninstall(c); err != nil || removed != nil {
		t.Errorf("uninstall again: %v, %v", removed, err)
	}
	if got := names(t, c.ConfDir); !slices.Equal(got, []string{"-rw-r--r-- 10-other.conflist"}) {
		t.Errorf("net.d: %v", got)
	}
}

func TestWithoutThePluginThereIsNoConflist(t *testing.T) {
	c := installation(t)
	write(t, c.BinDir, "a file where a directory should be")
	if changed, err := Install(c); err == nil || changed != nil || !strings.Contains(err.Error(), filepath.Join(c.BinDir, "twill-cni")) {
		t.Errorf("%v, %v", changed, err)
	}
	if _, err := os.Stat(c.ConfDir); !os.IsNotExist(err) {
		t.Errorf("net.d is there: %v", err)
	}
	c.Plugin += "-missing"
	if _, err := Install(c); err == nil || !strings.Contains(err.Error(), "read the original") {
		t.Errorf("%v", err)
	}
}

func TestAReadOnlyDirectoryIsNamedWithTheRemedy(t *testing.T) {
	c := installation(t)
	c.BinDir = "/sys" // nobody, root included, may make a file there
	_, err := Install(c)
	if err == nil || !strings.Contains(err.Error(), "install /sys/twill-cni: ") || !strings.Contains(err.Error(), "mount its directory writable") {
		t.Errorf("%v", err)
	}
}

func TestUninstallLeavesAFileOfAnotherNetworkAlone(t *testing.T) {
	c := installation(t)
	install(t, c)
	conf := filepath.Join(c.ConfDir, "05-twill.conflist")
	write(t, conf, `{"name":"other","plugins":[{"type":"bridge"}]}`)
	if removed, err := Uninstall(c); err == nil || removed != nil || !strings.Contains(err.Error(), "another network owns the file") {
		t.Errorf("%v, %v", removed, err)
	}
	if _, err := os.Stat(conf); err != nil {
		t.Error(err)
	}
}

// TestNothingIsForkedWhileThePluginIsWritten: a child that still has the file open for writing makes the kernel refuse to
// execute it ("text file busy"), and a runtime calls it as soon as it is there.
func TestNothingIsForkedWhileThePluginIsWritten(t *testing.T) {
	plugin := filepath.Join(t.TempDir(), "plugin")
	if err := os.WriteFile(plugin, []byte("plugin"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := InstallConfig{Plugin: plugin, BinDir: t.TempDir(), ConfDir: t.TempDir(), Conflist: []byte("{}")}
	done := make(chan error, 1)
	syscall.ForkLock.Lock() // as os/exec does to fork
	go func() {
		_, err := Install(c)
		done <- err
	}()
	select {
	case err := <-done:
		syscall.ForkLock.Unlock()
		t.Fatalf("the plugin was written during a fork: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if files, err := os.ReadDir(c.BinDir); err != nil || len(files) > 0 {
		t.Errorf("there is %v, %v: it was begun during a fork", files, err)
	}
	syscall.ForkLock.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
