package cluster

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/twill-net/twill/test/image"
)

// Programs are the cluster's programs, built.
type Programs struct {
	// Dir holds them by their usual names.
	Dir string
	// Version is that of Kubernetes.
	Version string
	source  string
}

// kubePrograms are what the one program kube is called by.
func kubePrograms() []string {
	return []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "helm"}
}

// versionVariables are where Kubernetes' programs have their version.
func versionVariables(version string) string {
	const component = "-X k8s.io/component-base/version."
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	return "-s -w " + component + "gitVersion=" + version + " " + component + "gitMajor=" + parts[0] + " " + component + "gitMinor=" + parts[1] +
		" " + component + "gitTreeState=clean " + component + "gitCommit=twill " + component + "buildDate=2026-01-01T00:00:00Z"
}

// Cache is where everything is kept that takes long to make.
func Cache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "twill"), nil
}

// Build builds the programs of a cluster from their modules, or finds them in the cache: the first time takes some
// twenty minutes on two cores. checkout is the root of the repository.
func Build(ctx context.Context, checkout string, log func(string, ...any)) (Programs, error) {
	return build(ctx, filepath.Join(checkout, "test/cluster/build"), log, []target{
		{out: "kube", pkg: "./kube", links: kubePrograms()},
		{out: "coredns", pkg: "./coredns"},
		{out: "pause", pkg: "./pause"},
	})
}

// target is one program to build.
type target struct {
	out, pkg string
	links    []string
	test     bool
}

// build builds targets in a module.
func build(ctx context.Context, module string, log func(string, ...any), targets []target) (Programs, error) {
	cache, err := Cache()
	if err != nil {
		return Programs{}, err
	}
	p := Programs{source: module}
	key, err := treeHash(p.source)
	if err != nil {
		return p, err
	}
	p.Dir = filepath.Join(cache, "cluster", key)
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return p, err
	}
	if p.Version, err = p.goTool(ctx, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"); err != nil {
		return p, err
	}
	for _, t := range targets {
		if exists(filepath.Join(p.Dir, t.out)) {
			continue
		}
		began := time.Now()
		log("building %s: %s", t.out, t.pkg)
		args := []string{"build"}
		if t.test {
			args = []string{"test", "-c"}
		}
		temporary := filepath.Join(p.Dir, "."+t.out)
		args = append(args, "-trimpath", "-ldflags", versionVariables(p.Version), "-o", temporary, t.pkg)
		if _, err := p.goTool(ctx, args...); err != nil {
			return p, err
		}
		for _, l := range t.links {
			if err := os.Symlink(t.out, filepath.Join(p.Dir, l)); err != nil && !os.IsExist(err) {
				return p, err
			}
		}
		if err := os.Rename(temporary, filepath.Join(p.Dir, t.out)); err != nil {
			return p, err
		}
		log("built %s in %s", t.out, time.Since(began).Round(time.Second))
	}
	return p, nil
}

// goTool runs the go command in the module of the programs.
func (p Programs) goTool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = p.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// treeHash names a directory's content and the compiler: what is built from the same has the same name.
func treeHash(dir string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintln(h, d.Name(), len(content))
		h.Write(content)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil))[:16], err
}

// Images that the cluster and its tests use. None is pulled.
const (
	PauseImage   = "images.k8s.example/pause:3.10.1"
	CoreDNSImage = "images.k8s.example/coredns/coredns:twill-test"
	BusyboxImage = "images.k8s.example/e2e-test-images/busybox:1.37.0-1"
	// TwillImage is what the chart is told to run.
	TwillImage      = TwillRepository + ":" + TwillTag
	TwillTag        = "test"
	TwillRepository = "twill.example/twill"
)

// BuildImages makes the archives that the nodes import, in dir: Twill from this checkout, and what the tests run.
func (p Programs) BuildImages(ctx context.Context, checkout, dir string) ([]string, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	twill := filepath.Join(dir, "twill.tar")
	g.Go(func() error {
		return image.Twill{
			Checkout: checkout, Name: TwillImage, Version: TwillTag, Arch: runtime.GOARCH, Cache: filepath.Join(cache, "debian"),
		}.Build(ctx, twill)
	})
	archives := []string{twill}
	small := func(name, reference string, entrypoint []string, fill func(root string) error) {
		out := filepath.Join(dir, name+".tar")
		archives = append(archives, out)
		g.Go(func() error {
			root := filepath.Join(dir, name)
			if err := os.MkdirAll(root, 0o755); err != nil {
				return err
			}
			if err := fill(root); err != nil {
				return err
			}
			return image.Write(out, image.Image{Names: []string{reference}, Arch: runtime.GOARCH, Entrypoint: entrypoint, Root: root})
		})
	}
	program := func(name string) func(string) error {
		return func(root string) error { return copyFile(p.path(name), filepath.Join(root, name)) }
	}
	small("pause", PauseImage, []string{"/pause"}, program("pause"))
	small("coredns", CoreDNSImage, []string{"/coredns"}, program("coredns"))
	small("busybox", BusyboxImage, []string{"/usr/bin/busybox", "sh"}, func(root string) error {
		for _, d := range []string{"usr/bin", "tmp", "etc", "proc", "sys", "dev"} {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
		if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
			return err
		}
		if err := copyFile("/bin/busybox", filepath.Join(root, "usr/bin/busybox")); err != nil {
			return err
		}
		return image.Busybox(ctx, root)
	})
	return archives, g.Wait()
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}
