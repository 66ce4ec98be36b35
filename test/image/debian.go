package image

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Package is a Debian package, as it went into a tree.
type Package struct{ Name, Version, Arch string }

// Debian is where packages come from: the sources of this machine's apt, for any architecture.
type Debian struct {
	// Arch is Debian's name of the architecture: amd64, arm64.
	Arch string
	// Cache keeps what was downloaded.
	Cache string
}

// Unpack unpacks packages into root, their scripts are not run. Manual pages and translations stay out.
func (d Debian) Unpack(ctx context.Context, root string, names []string) ([]Package, error) {
	// Everything of Debian 12 is merged into /usr.
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return nil, err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return nil, err
		}
	}
	files, err := d.download(ctx, names)
	if err != nil {
		return nil, err
	}
	var packages []Package
	for _, file := range files {
		out, err := tool(ctx, "", "dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}", file)
		if err != nil {
			return nil, err
		}
		var p Package
		if _, err := fmt.Sscan(out, &p.Name, &p.Version, &p.Arch); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		packages = append(packages, p)
		if err := unpack(ctx, file, root); err != nil {
			return nil, err
		}
	}
	for _, useless := range []string{"usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/info", "usr/share/bash-completion", "usr/lib/systemd", "usr/share/bug"} {
		if err := os.RemoveAll(filepath.Join(root, useless)); err != nil {
			return nil, err
		}
	}
	// The licences stay.
	docs, _ := filepath.Glob(root + "/usr/share/doc/*/*")
	for _, f := range docs {
		if filepath.Base(f) != "copyright" {
			if err := os.RemoveAll(f); err != nil {
				return nil, err
			}
		}
	}
	return packages, nil
}

// unpack is dpkg-deb -x that goes through a link to a directory, as dpkg does, and does not put a directory in its
// place: many packages still have their files in /bin and /lib.
func unpack(ctx context.Context, file, root string) error {
	files := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	tar := exec.CommandContext(ctx, "tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", root)
	pipe, err := files.StdoutPipe()
	if err != nil {
		return err
	}
	var filesSaid, tarSaid bytes.Buffer
	tar.Stdin, files.Stderr, tar.Stderr = pipe, &filesSaid, &tarSaid
	if err := files.Start(); err != nil {
		return err
	}
	err = tar.Run()
	if err := errors.Join(err, files.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", file, err, strings.TrimSpace(filesSaid.String()+" "+tarSaid.String()))
	}
	return nil
}

// download brings the packages into the cache and returns their files in the order of names.
func (d Debian) download(ctx context.Context, names []string) ([]string, error) {
	dir := filepath.Join(d.Cache, d.Arch)
	if err := os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755); err != nil {
		return nil, err
	}
	find := func() (files, missing []string) {
		for _, name := range names {
			found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
			if len(found) == 0 {
				missing = append(missing, name)
				continue
			}
			files = append(files, slices.Max(found))
		}
		return files, missing
	}
	// One at a time, so that the index is renewed and a package is brought once; a download becomes visible when it is whole.
	held, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	files, missing := find()
	if len(missing) == 0 {
		return files, nil
	}
	fresh, err := os.MkdirTemp(dir, ".download-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(fresh)
	args := []string{"apt-get", "-q"}
	if d.Arch != runtime.GOARCH { // an index of its own: the machine's need not know of the architecture
		args = append(args, "-o", "APT::Architecture="+d.Arch, "-o", "APT::Architectures="+d.Arch,
			"-o", "Dir::State::Lists="+dir+"/lists", "-o", "Dir::State::Status=/dev/null", "-o", "APT::Sandbox::User=root")
	}
	get := func() error {
		_, err := tool(ctx, fresh, slices.Concat(args, []string{"download"}, missing)...)
		return err
	}
	if err := get(); err != nil { // the index is missing or old
		if _, err := tool(ctx, fresh, append(args, "update")...); err != nil {
			return nil, err
		}
		if err := get(); err != nil {
			return nil, err
		}
	}
	brought, _ := filepath.Glob(filepath.Join(fresh, "*.deb"))
	for _, file := range brought {
		if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return nil, err
		}
	}
	if files, missing = find(); len(missing) > 0 {
		return nil, fmt.Errorf("apt-get brought no package for %s", strings.Join(missing, ", "))
	}
	return files, nil
}

// lock waits until nobody else, in this process or another, holds the directory; closing the file gives it back.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

// CheckLibraries finds programs and libraries below root that need a library which is not there.
func CheckLibraries(root string) error {
	present, needed := map[string]bool{}, map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.Contains(path, "/lib") && strings.Contains(d.Name(), ".so") {
			present[d.Name()] = true
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := elf.Open(path)
		if err != nil {
			return nil // a script, a text
		}
		defer f.Close()
		libraries, err := f.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, l := range libraries {
			needed[l] = append(needed[l], strings.TrimPrefix(path, root))
		}
		return nil
	})
	if err != nil {
		return err
	}
	var failed []error
	for l, by := range needed {
		if !present[l] {
			failed = append(failed, fmt.Errorf("%s lacks %s: add the package that has it", by[0], l))
		}
	}
	return errors.Join(failed...)
}

// Busybox gives each applet its link in /bin, where no program of that name is.
func Busybox(ctx context.Context, root string) error {
	busybox := filepath.Join(root, "usr/bin/busybox")
	out, err := tool(ctx, "", "busybox", "--list") // this machine's: root may be of another architecture
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(out) {
		if slices.ContainsFunc([]string{"usr/bin/", "usr/sbin/"}, func(dir string) bool {
			_, err := os.Lstat(filepath.Join(root, dir, applet))
			return err == nil
		}) {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(filepath.Dir(busybox), applet)); err != nil {
			return err
		}
	}
	return nil
}

// tool runs a program in a directory and returns what it printed.
func tool(ctx context.Context, dir string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
