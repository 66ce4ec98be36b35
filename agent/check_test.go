package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// fakeProc is a procfs with what the checks read.
func fakeProc(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{
		"net/udp": "  sl  local_address rem_address\n", "net/udp6": "  sl  local_address\n",
		"sys/net/ipv4/ip_forward": "1\n", "sys/net/ipv6/conf/all/forwarding": "1\n", "sys/net/ipv4/conf/all/rp_filter": "0\n",
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestCheckNamesEachFaultWithItsRemedy seeds one fault at a time on a node without Open vSwitch.
func TestCheckNamesEachFaultWithItsRemedy(t *testing.T) {
	for _, c := range []struct {
		what  string
		proc  map[string]string
		cni   []string
		set   func(*Config)
		check string
		says  string
	}{
		{"nothing else", nil, nil, nil, "", ""},
		{"tunnel port taken", map[string]string{"net/udp": "  sl  local_address\n   1: 00000000:17C1 00000000:0000 07\n"}, nil, nil, "port 6081", "in use, and not by Twill"},
		{"tunnel port taken on IPv6", map[string]string{"net/udp6": "  sl  local_address\n   1: 00000000000000000000000000000000:12B5 0 07\n"}, nil,
			func(c *Config) { c.TunnelType = "vxlan" }, "port 4789", "in use, and not by Twill"},
		{"no forwarding", map[string]string{"sys/net/ipv4/ip_forward": "0\n"}, nil, nil, "forwarding", "net.ipv4.ip_forward = 0"},
		{"no IPv6 forwarding", map[string]string{"sys/net/ipv6/conf/all/forwarding": "0\n"}, nil, nil, "forwarding", "net.ipv6.conf.all.forwarding = 0"},
		{"strict reverse path filter", map[string]string{"sys/net/ipv4/conf/all/rp_filter": "1\n", "sys/net/ipv4/conf/twill0/rp_filter": "1\n"}, nil, nil, "rp_filter", "is strict"},
		{"another CNI first", nil, []string{"00-other.conflist"}, nil, "cni", "would use 00-other.conflist"},
		{"range taken by the host", nil, nil, func(c *Config) { c.ClusterCIDRs = []string{"127.0.0.0/8", "2001:db8:1::/48"} }, "addresses", "address 127.0.0.1/8 of lo overlaps"},
	} {
		cfg := Config{}
		cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
		dir := t.TempDir()
		cfg.NodeName, cfg.OVSRunDir, cfg.OVSDB, cfg.CNIConfDir = "n", dir, "unix:"+dir+"/db.sock", filepath.Join(dir, "cni")
		cfg.ClusterCIDRs = []string{"198.18.0.0/16", "2001:db8:1::/48"}
		if c.set != nil {
			c.set(&cfg)
		}
		if err := os.MkdirAll(cfg.CNIConfDir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range c.cni {
			if err := os.WriteFile(filepath.Join(cfg.CNIConfDir, name), []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		found, err := Check(t.Context(), cfg, nil, fakeProc(t, c.proc))
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		var failed []string
		for _, f := range found {
			if f.Result != CheckFailed {
				continue
			}
			failed = append(failed, f.Check)
			if f.Remedy == "" || f.Detail == "" {
				t.Errorf("%s: %+v has no remedy", c.what, f)
			}
			if f.Check == c.check && !strings.Contains(f.Detail, c.says) {
				t.Errorf("%s: %q, want %q", c.what, f.Detail, c.says)
			}
		}
		want := []string{"ovsdb", "ovs-vswitchd"} // which are not there
		if c.check != "" {
			want = append(want, c.check)
		}
		if !slices.Equal(failed, want) {
			t.Errorf("%s: failed are %v, want %v; %+v", c.what, failed, want, found)
		}
	}
}

func TestSecretsAndAddressesStayOnTheNode(t *testing.T) {
	for in, want := range map[string]string{
		`options: {psk="swordfish", remote_ip=flow}`: `options: {psk=REMOVED, remote_ip=flow}`,
		"private_key: /etc/keys/a.pem":               "private_key: REMOVED",
		`"token": "abc.def"`:                         `"token": REMOVED`,
		"mtu: 1450":                                  "mtu: 1450",
	} {
		if got := withoutSecrets(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	got := conntrackSummary("tcp,orig=(src=198.18.1.2,dst=198.18.1.3,sport=1,dport=80),reply=(src=198.18.1.3),zone=30480,protoinfo=(state=ESTABLISHED)\nudp,orig=(src=198.18.1.2)\n")
	if got != "zone 0 udp: 1 connections\nzone 30480 tcp: 1 connections\n" {
		t.Errorf("conntrack: %q", got)
	}
}

func TestCheckComparesTheClock(t *testing.T) {
	right, wrong := 0.0, -3600.0
	for _, c := range []struct {
		status *Status
		want   string
		says   string
	}{
		{nil, CheckSkipped, "no agent answers"},
		{&Status{}, CheckSkipped, "no agent answers"},
		{&Status{ClockSkew: &right}, CheckOK, "within 1m0s"},
		{&Status{ClockSkew: &wrong}, CheckFailed, "1h0m0s behind"},
	} {
		check := &checker{}
		check.clock(c.status)
		f := check.findings[0]
		if len(check.findings) != 1 || f.Check != "clock" || f.Result != c.want || !strings.Contains(f.Detail, c.says) || (f.Remedy != "") != (c.want == CheckFailed) {
			t.Errorf("%+v: found %+v, want %s, %q", c.status, check.findings, c.want, c.says)
		}
	}
}
