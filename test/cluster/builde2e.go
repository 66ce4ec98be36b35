//go:build e2e

package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"github.com/twill-net/twill/test/image"
)

// AgnhostImage is the program in nearly all pods of Kubernetes' own tests.
const AgnhostImage = "images.k8s.example/e2e-test-images/agnhost:2.56"

// e2eModule is where they are built.
const e2eModule = "test/cluster/e2e"

// BuildE2E builds what Kubernetes' own end-to-end tests need besides a cluster's programs.
func BuildE2E(ctx context.Context, checkout string, log func(string, ...any)) (Programs, error) {
	return build(ctx, filepath.Join(checkout, e2eModule), log, []target{
		{out: "agnhost", pkg: "k8s.io/kubernetes/test/images/agnhost"},
		{out: "regression-issue-74839", pkg: "k8s.io/kubernetes/test/images/regression-issue-74839"},
		// HostPort, as long as Twill leaves it to the plugin chained after it.
		{out: "portmap", pkg: "github.com/containernetworking/plugins/plugins/meta/portmap", dir: checkout},
		{out: "loadbalancer", pkg: "./loadbalancer"},
		{out: "ginkgo", pkg: "github.com/onsi/ginkgo/v2/ginkgo"},
		{out: "e2e.test", pkg: "k8s.io/kubernetes/test/e2e", test: true},
	})
}

// BuildAgnhost makes the image of agnhost in dir: the program, and what the tests call beside it: tools, and the DNS
// server of the cluster's programs.
func (p Programs) BuildAgnhost(ctx context.Context, checkout string, cluster Programs, dir string) (archive string, err error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	list, err := os.ReadFile(filepath.Join(checkout, "test/cluster/testdata/agnhost-packages.txt"))
	if err != nil {
		return "", err
	}
	source, err := goTool(ctx, filepath.Join(checkout, e2eModule), "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "agnhost")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	debian := image.Debian{Arch: runtime.GOARCH, Cache: filepath.Join(cache, "debian")}
	if _, err := debian.Unpack(ctx, root, image.PackageList(string(list))); err != nil {
		return "", err
	}
	certificates := filepath.Join(source, "test/images/agnhost/porter")
	if err := errors.Join(
		copyFile(cluster.path("coredns"), filepath.Join(root, "coredns")),
		copyFile(p.path("agnhost"), filepath.Join(root, "agnhost")), os.Symlink("agnhost", filepath.Join(root, "agnhost-2")),
		copyFile(filepath.Join(certificates, "localhost.crt"), filepath.Join(root, "localhost.crt")),
		copyFile(filepath.Join(certificates, "localhost.key"), filepath.Join(root, "localhost.key")),
		os.MkdirAll(filepath.Join(root, "uploads"), 0o777), os.MkdirAll(filepath.Join(root, "tmp"), 0o777),
		// sh is bash: that of busybox prefers its own applets to the programs beside it.
		os.Symlink("bash", filepath.Join(root, "usr/bin/sh")), os.Symlink("nc.openbsd", filepath.Join(root, "usr/bin/nc")),
		image.Busybox(ctx, root), image.CheckLibraries(root),
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/bash\nuser-defined-in-image:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/nsswitch.conf"), []byte("hosts: files dns\n"), 0o644),
	); err != nil {
		return "", err
	}
	archive = filepath.Join(dir, "agnhost.tar")
	return archive, image.Write(archive, image.Image{
		// The DNS tests ask for an image of their own, of which they use dig and sh.
		Names: []string{AgnhostImage, "images.k8s.example/e2e-test-images/jessie-dnsutils:1.7"},
		Arch:  runtime.GOARCH, Entrypoint: []string{"/agnhost"}, Command: []string{"pause"}, Root: root,
	})
}

// BuildInjector makes the image of a server that sends packets out of their connection's window, in dir: a client that
// gets one untranslated resets the connection (kubernetes/kubernetes issue 74839).
func (p Programs) BuildInjector(dir string) (archive string, err error) {
	const name = "regression-issue-74839"
	root := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(root, 0o755), copyFile(p.path(name), filepath.Join(root, name))); err != nil {
		return "", err
	}
	archive = filepath.Join(dir, name+".tar")
	return archive, image.Write(archive, image.Image{
		Names: []string{"images.k8s.example/e2e-test-images/" + name + ":1.2"}, Arch: runtime.GOARCH, Entrypoint: []string{"/" + name}, Root: root,
	})
}
