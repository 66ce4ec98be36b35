package image

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

func TestPackagesAreUnpackedThroughTheLinksOfAMergedUsr(t *testing.T) {
	for _, tool := range []string{"dpkg-deb", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("needs %s", tool)
			}
			t.Skipf("needs %s", tool)
		}
	}
	made, root := t.TempDir(), t.TempDir()
	for file, text := range map[string]string{"DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n", "bin/x": "x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(made, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(made, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(t.TempDir(), "x.deb")
	if _, err := tool(t.Context(), "", "dpkg-deb", "--build", "--root-owner-group", made, deb); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := unpack(t.Context(), deb, root); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(root, "usr/bin/x")); err != nil || string(text) != "x" {
		t.Errorf("usr/bin/x is %q, %v: the link bin was replaced by a directory", text, err)
	}
	if err := unpack(t.Context(), filepath.Join(made, "bin/x"), root); err == nil {
		t.Error("a file that is no package was unpacked")
	}
}

// TestAPackageIsBroughtOnceAndWhole asks for one package from several sides at once, of an apt-get that writes a package
// in two pieces, and then one that breaks off in between.
func TestAPackageIsBroughtOnceAndWhole(t *testing.T) {
	bin, calls := t.TempDir(), filepath.Join(t.TempDir(), "calls")
	aptGet := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte("#!/bin/sh\necho \"$*\" >>"+calls+"\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	d := Debian{Arch: runtime.GOARCH, Cache: t.TempDir()}

	aptGet("printf half >p_1.deb; printf ' whole' >>p_1.deb\n")
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			files, err := d.download(t.Context(), []string{"p"})
			if err != nil {
				return err
			}
			if text, err := os.ReadFile(files[0]); err != nil || string(text) != "half whole" {
				return fmt.Errorf("the package is %q, %v", text, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if said, err := os.ReadFile(calls); err != nil || strings.Count(string(said), "\n") != 1 {
		t.Errorf("apt-get was called %q, %v: want one download", said, err)
	}

	aptGet("printf half >q_1.deb; exit 100\n")
	if files, err := d.download(t.Context(), []string{"q"}); err == nil || !strings.Contains(err.Error(), "exit status 100") {
		t.Errorf("of a download that broke off: %v, %v", files, err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Cache, d.Arch, "q_*")); len(left) > 0 {
		t.Errorf("half a package stays in the cache: %v", left)
	}
}

func TestAnImageThatLacksAProgramIsRefused(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"there": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(root, "usr/sbin", name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../lib/nowhere", filepath.Join(root, "usr/sbin/dangling")); err != nil {
		t.Fatal(err)
	}
	if err := CheckPrograms(root, []string{"there"}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"text", "dangling", "absent"} {
		if err := CheckPrograms(root, []string{"there", name}); err == nil || !strings.Contains(err.Error(), "lacks the program "+name+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
