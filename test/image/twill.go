package image

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Twill says how to make the image of Twill.
type Twill struct {
	// Checkout is the root of the repository.
	Checkout string
	// Name is the reference of the image, with its tag.
	Name string
	// Version is what `twill --version` prints.
	Version string
	// Arch is amd64 or arm64.
	Arch string
	// Cache keeps packages.
	Cache string
	// Compress makes the archive smaller.
	Compress bool
}

// SBOM is where the image lists what it is made of (SPDX 2.3).
const SBOM = "/usr/share/twill/sbom.spdx.json"

// Build writes the archive, and the list of what is in it beside: OUT.spdx.json.
func (t Twill) Build(ctx context.Context, out string) error {
	root, err := os.MkdirTemp(filepath.Dir(out), ".root-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	list, err := os.ReadFile(filepath.Join(t.Checkout, "image/packages.txt"))
	if err != nil {
		return err
	}
	packages, err := Debian{Arch: t.Arch, Cache: t.Cache}.Unpack(ctx, root, PackageList(string(list)))
	if err != nil {
		return err
	}
	bin := filepath.Join(root, "usr/local/bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+t.Version, "-o", bin+"/", "./cmd/twill", "./cmd/twill-cni")
	cmd.Dir = t.Checkout
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+t.Arch)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, said)
	}
	script, err := os.ReadFile(filepath.Join(t.Checkout, "image/ovs"))
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(bin+"/ovs", script, 0o755),
		os.WriteFile(root+"/etc/passwd", []byte("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"), 0o644),
		os.WriteFile(root+"/etc/group", []byte("root:x:0:\nnogroup:x:65534:\n"), 0o644),
		// Mount points, as the root file system is read-only.
		mkdirs(root, "run/twill", "run/openvswitch", "tmp", "root", "proc", "sys", "dev", "host/proc/sys/net", "opt/cni/bin", "etc/cni/net.d"),
		os.RemoveAll(root+"/var/run"), os.Symlink("../run", root+"/var/run"),
		// An alternative, which a package's own script would have linked.
		os.Symlink("../lib/openvswitch-switch/ovs-vswitchd", root+"/usr/sbin/ovs-vswitchd"),
		Busybox(ctx, root), CheckLibraries(root), CheckPrograms(root, programs())); err != nil {
		return err
	}
	bill, err := billOf(t, packages, bin+"/twill", bin+"/twill-cni")
	if err != nil {
		return err
	}
	if err := errors.Join(mkdirs(root, "usr/share/twill"), os.WriteFile(root+SBOM, bill, 0o644), os.WriteFile(out+".spdx.json", bill, 0o644)); err != nil {
		return err
	}
	return Write(out, Image{
		Names: []string{t.Name}, Arch: t.Arch, Entrypoint: []string{"twill"}, Root: root, Compress: t.Compress,
		Labels: map[string]string{
			"org.opencontainers.image.title": "twill", "org.opencontainers.image.version": t.Version, "org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.description": "A Kubernetes pod network on Open vSwitch",
		},
	})
}

// programs are those that Twill, the script ovs and the chart call by name.
func programs() []string {
	return []string{
		"ovs", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovsdb-client", "ovs-vsctl", "ovs-ofctl", "ovs-appctl",
		"nft", "ip", "conntrack", "tcpdump", "ethtool", "ping", "twill", "twill-cni", "sh", "awk", "cat", "cp", "mkdir", "rm", "sleep", "dirname",
	}
}

// CheckPrograms fails, and names it, if the tree in root lacks one of the programs in its PATH.
func CheckPrograms(root string, names []string) error {
	var failed []error
	for _, name := range names {
		if !slices.ContainsFunc([]string{"usr/local/bin", "usr/sbin", "usr/bin"}, func(dir string) bool {
			info, err := os.Stat(filepath.Join(root, dir, name))
			return err == nil && info.Mode()&0o111 != 0
		}) {
			failed = append(failed, fmt.Errorf("the image lacks the program %s: add the package that has it to image/packages.txt, or the link that its scripts would make", name))
		}
	}
	return errors.Join(failed...)
}

// PackageList reads the names in a list: one a line, # begins a comment.
func PackageList(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		names = append(names, strings.Fields(line)...)
	}
	return names
}

func mkdirs(root string, dirs ...string) error {
	var failed []error
	for _, d := range dirs {
		failed = append(failed, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	return errors.Join(failed...)
}

// billOf lists Debian packages and the Go modules inside of our programs (SPDX 2.3, JSON).
func billOf(t Twill, packages []Package, programs ...string) ([]byte, error) {
	type reference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	type item struct {
		ID       string      `json:"SPDXID"`
		Name     string      `json:"name"`
		Version  string      `json:"versionInfo"`
		Download string      `json:"downloadLocation"`
		Analyzed bool        `json:"filesAnalyzed"`
		Refs     []reference `json:"externalRefs"`
	}
	var items []item
	add := func(name, version, purl string) {
		items = append(items, item{
			ID: fmt.Sprintf("SPDXRef-%d", len(items)), Name: name, Version: version, Download: "NOASSERTION",
			Refs: []reference{{"PACKAGE-MANAGER", "purl", purl}},
		})
	}
	for _, p := range packages {
		add(p.Name, p.Version, fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", p.Name, strings.ReplaceAll(p.Version, "+", "%2B"), p.Arch))
	}
	seen := map[string]bool{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		if !seen["go"] {
			add("stdlib", info.GoVersion, "pkg:golang/stdlib@"+strings.TrimPrefix(info.GoVersion, "go"))
			seen["go"] = true
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if !seen[m.Path] {
				add(m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version)
				seen[m.Path] = true
			}
		}
	}
	return json.MarshalIndent(map[string]any{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": t.Name,
		"documentNamespace": "https://github.com/twill-net/twill/sbom/" + t.Version + "/" + t.Arch,
		"creationInfo":      map[string]any{"created": epoch.Format("2006-01-02T15:04:05Z"), "creators": []string{"Tool: twill-image"}},
		"packages":          items,
	}, "", "  ")
}
