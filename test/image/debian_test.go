package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
