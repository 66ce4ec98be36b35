package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func defaults(t *testing.T) (*Config, *pflag.FlagSet) {
	t.Helper()
	var c Config
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.Flags(f)
	c.NodeName = "node-1"
	return &c, f
}

func TestTheDefaultsAreValid(t *testing.T) {
	c, _ := defaults(t)
	s, err := c.resolve()
	if err != nil || s.tunnelPort != 6081 {
		t.Errorf("port %d, %v; want 6081 and no error", s.tunnelPort, err)
	}
}

func TestAWrongValueIsNamedWithItsFieldAndARemedy(t *testing.T) {
	for _, c := range []struct {
		field, value, remedy string
		set                  func(*Config)
	}{
		{"node-name", "", "kubectl get nodes", func(c *Config) { c.NodeName = "" }},
		{"tunnel-type", "gre", "geneve or vxlan", func(c *Config) { c.TunnelType = "gre" }},
		{"vni", "0", "1 to 16777215", func(c *Config) { c.VNI = 0 }},
		{"vni", "16777216", "1 to 16777215", func(c *Config) { c.VNI = 1 << 24 }},
		{"tunnel-address", "here", "address of this node", func(c *Config) { c.TunnelAddress = "here" }},
		{"mtu", "1279", "1280", func(c *Config) { c.MTU = 1279 }},
		{"datapath-type", "kernel", "auto, system or netdev", func(c *Config) { c.DatapathType = "kernel" }},
		{"cluster-cidr", "198.18.0.1/16", "host bits", func(c *Config) { c.ClusterCIDRs = []string{"198.18.0.1/16"} }},
		{"cluster-cidr", "198.18.0.0/16,198.19.0.0/16", "one range of each family", func(c *Config) { c.ClusterCIDRs = []string{"198.18.0.0/16", "198.19.0.0/16"} }},
		{"no-masquerade-cidr", "x", "use ranges like", func(c *Config) { c.NoMasqueradeCIDRs = []string{"x"} }},
		{"nodeport-addresses", "198.51.100.1/24", "host bits", func(c *Config) { c.NodePortAddresses = []string{"198.51.100.1/24"} }},
		{"cni-portmap", "yes", "auto, true or false", func(c *Config) { c.Portmap = "yes" }},
		{"bridge", "a-name-that-is-too-long", "15 characters", func(c *Config) { c.Bridge = "a-name-that-is-too-long" }},
		{"gateway", "br-twill", "other than the bridge's", func(c *Config) { c.Gateway = "br-twill" }},
		{"cni-socket", "cni.sock", "absolute path", func(c *Config) { c.CNISocket = "cni.sock" }},
		{"http-address", "9455", "ADDRESS:PORT", func(c *Config) { c.HTTPAddress = "9455" }},
		{"log-level", "loud", "debug", func(c *Config) { c.LogLevel = "loud" }},
		{"log-format", "xml", "text or json", func(c *Config) { c.LogFormat = "xml" }},
		{"audit-interval", "0s", "one second", func(c *Config) { c.AuditInterval = 0 }},
		{"address-cooldown", "-1ns", "zero or more", func(c *Config) { c.Cooldown = -1 }},
	} {
		cfg, _ := defaults(t)
		c.set(cfg)
		_, err := cfg.resolve()
		if err == nil {
			t.Errorf("--%s %q was accepted", c.field, c.value)
			continue
		}
		for _, part := range []string{"--" + c.field, `"` + c.value + `"`, c.remedy} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("--%s %q: %q lacks %q", c.field, c.value, err, part)
			}
		}
	}
}

func TestAFlagWinsOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "twill.yaml")
	text := "tunnel-type: vxlan\nvni: 9\nmtu: 1400\ncluster-cidr: [198.18.0.0/16, '2001:db8::/48']\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, f := defaults(t)
	if err := f.Parse([]string{"--mtu", "1300"}); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"TWILL_VNI": "11", "TWILL_MTU": "1350"}
	if err := Load(f, file, func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	if c.TunnelType != "vxlan" || c.VNI != 11 || c.MTU != 1300 || len(c.ClusterCIDRs) != 2 {
		t.Errorf("type %s, vni %d, mtu %d, ranges %v; want vxlan of the file, 11 of the environment, 1300 of the flag, two ranges",
			c.TunnelType, c.VNI, c.MTU, c.ClusterCIDRs)
	}
}

func TestAWrongFileOrEnvironmentIsNamed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	none := func(string) (string, bool) { return "", false }
	for _, c := range []struct {
		name, file, want string
		lookup           func(string) (string, bool)
	}{
		{"an unknown key", write("a.yaml", "tunel-type: vxlan\n"), `unknown key "tunel-type"`, none},
		{"a wrong type", write("b.yaml", "vni: many\n"), "vni: many", none},
		{"broken YAML", write("c.yaml", "vni: [\n"), "c.yaml", none},
		{"a missing file", filepath.Join(dir, "d.yaml"), "d.yaml", none},
		{"a wrong variable", "", `TWILL_VNI="x"`, func(k string) (string, bool) { return "x", k == "TWILL_VNI" }},
	} {
		_, f := defaults(t)
		if err := Load(f, c.file, c.lookup); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
	}
}

func TestPortmapIsChainedWhereItIs(t *testing.T) {
	c, _ := defaults(t)
	c.CNIBinDir = t.TempDir()
	if c.portmap() {
		t.Error("chained, though the runtime would fail each ADD for want of it")
	}
	if err := os.WriteFile(filepath.Join(c.CNIBinDir, "portmap"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if !c.portmap() {
		t.Error("not chained, though it is there")
	}
	if c.Portmap = "false"; c.portmap() {
		t.Error("chained, though it was not to be")
	}
}
