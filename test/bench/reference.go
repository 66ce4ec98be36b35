package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/twill-net/twill/test/lab"
)

// referenceVersion is the release of the CNI project's own plugins that Twill is measured against.
const referenceVersion = "v1.9.1"

// buildReference builds the plugins bridge and host-local into dir. They are installed by version
// rather than imported: their dependencies are nobody's but theirs.
func buildReference(ctx context.Context, dir string) error {
	say("building the reference plugins %s", referenceVersion)
	const module = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "-ldflags=-s -w",
		module+"main/bridge@"+referenceVersion, module+"ipam/host-local@"+referenceVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// newReference configures the reference plugins for a namespace of the lab: a kernel bridge, addresses
// by host-local, the pods' default route; no masquerade, which would only make it slower.
func newReference(ctx context.Context, l *lab.Lab, plugins string) (*lab.CNI, error) {
	dir := filepath.Join(lab.Dir(l.Name), "reference")
	conf := filepath.Join(dir, "net.d")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "reference",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1450,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": filepath.Join(dir, "addresses"),
				"ranges": []any{[]any{map[string]any{"subnet": "198.19.0.0/16"}}},
				"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(conf, "10-reference.conflist"), list, 0o644); err != nil {
		return nil, err
	}
	name := namespace(l, "reference")
	if err := ip(ctx, "netns add "+name); err != nil {
		return nil, err
	}
	return lab.LoadCNI(lab.CNIConfig{ConfDir: conf, BinDir: plugins, CacheDir: filepath.Join(dir, "cache"), NetNS: name})
}

// namespace is a name that the lab takes for its own and removes when it goes down.
func namespace(l *lab.Lab, name string) string { return "twl-" + l.Name + "-" + name }

// ip runs `ip -batch` with these lines.
func ip(ctx context.Context, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}
