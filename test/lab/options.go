package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultName is the lab that commands speak of when no --name is given.
const DefaultName = "lab"

// Config is what makes one lab different from another. It is kept in the lab's directory.
type Config struct {
	// Name is part of the name of every namespace. Lower-case letters and digits, at most 20.
	Name string `json:"name"`
	// Datapath is the datapath_type of the bridges: netdev (userspace, works everywhere) or system
	// (needs the kernel's openvswitch module).
	Datapath string `json:"datapath"`
	// Tunnel is the encapsulation: geneve or vxlan.
	Tunnel string `json:"tunnel"`
	// IPFamily says which addresses nodes and pods have: ipv4, ipv6 or dual.
	IPFamily string `json:"ipFamily"`
	// UnderlayMTU is the MTU in bytes of the network that joins the nodes.
	UnderlayMTU int `json:"underlayMTU"`
	// BinDir is where twill and twill-cni are. Default: beside the running program.
	BinDir string `json:"binDir"`
	// LogLevel is the agents' --log-level.
	LogLevel string `json:"logLevel"`
	// NoAgent leaves the nodes without an agent.
	NoAgent bool `json:"noAgent,omitempty"`
}

// Options is what Up is told.
type Options struct {
	Config
	// Nodes is how many nodes to start with, 1 to 200. Default 3.
	Nodes int
	// Keep leaves a lab that failed to come up as it is, to be looked at.
	Keep bool
}

// Dir is the directory of a lab: below /run/twill-lab, or below $TWILL_LAB_DIR.
func Dir(name string) string {
	root := os.Getenv("TWILL_LAB_DIR")
	if root == "" {
		root = "/run/twill-lab"
	}
	return filepath.Join(root, name)
}

// Slow is how many times longer than on an ordinary machine things may take before they count as failed:
// $TWILL_SLOW, 1 by default. An emulated processor wants 10.
func Slow() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("TWILL_SLOW")); err == nil && n > 0 {
		return time.Duration(n)
	}
	return 1
}

func (o *Options) setDefaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.Name, DefaultName)
	def(&o.Datapath, "netdev")
	def(&o.Tunnel, "geneve")
	def(&o.IPFamily, "dual")
	def(&o.LogLevel, "info")
	def(&o.BinDir, defaultBinDir())
	if abs, err := filepath.Abs(o.BinDir); err == nil {
		o.BinDir = abs // commands on nodes come from anywhere
	}
	if o.UnderlayMTU == 0 {
		o.UnderlayMTU = 1500
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
}

// defaultBinDir is where the running program lies, or bin/ of the module for programs that
// `go test` and `go run` put elsewhere.
func defaultBinDir() string {
	self, err := os.Executable()
	if err == nil {
		if _, err := os.Stat(filepath.Join(filepath.Dir(self), "twill")); err == nil {
			return filepath.Dir(self)
		}
	}
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "bin")
		}
	}
	return filepath.Dir(self)
}

var nameRule = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

func (o *Options) validate() error {
	if !nameRule.MatchString(o.Name) {
		return fmt.Errorf("--name %q: a lab's name is a letter and up to 19 more lower-case letters and digits", o.Name)
	}
	for _, f := range []struct {
		flag, value string
		allowed     []string
	}{
		{"datapath", o.Datapath, []string{"netdev", "system"}},
		{"tunnel", o.Tunnel, tunnelTypes},
		{"ip-family", o.IPFamily, []string{"ipv4", "ipv6", "dual"}},
	} {
		if !slices.Contains(f.allowed, f.value) {
			return fmt.Errorf("--%s %q: must be one of %s", f.flag, f.value, strings.Join(f.allowed, ", "))
		}
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return fmt.Errorf("--nodes %d: must be 1 to %d", o.Nodes, maxNodes)
	}
	// 1280 is the least that IPv6 accepts (RFC 8200, section 5), 65535 the most that veth does.
	if o.UnderlayMTU < 1280 || o.UnderlayMTU > 65535 {
		return fmt.Errorf("--underlay-mtu %d: must be 1280 to 65535", o.UnderlayMTU)
	}
	// A unix socket's path has at most 107 characters (unix(7)); ovs/ovs-vswitchd.PID.ctl is the longest of ours.
	if longest := filepath.Join(Dir(o.Name), "nodes", "node-200", "ovs", "ovs-vswitchd.4194304.ctl"); len(longest) > 107 {
		return fmt.Errorf("TWILL_LAB_DIR makes socket paths of %d characters, and 107 is the limit: choose a shorter one", len(longest))
	}
	return nil
}

var tunnelTypes = []string{"geneve", "vxlan"}

// checkMachine says what is missing before anything is built.
func checkMachine(c Config) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the lab makes network namespaces, and that needs root: run it with sudo")
	}
	for _, tool := range []string{"ip", "ethtool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: run `make deps`", tool)
		}
	}
	if c.Datapath == "system" {
		if _, err := os.Stat("/sys/module/openvswitch"); err != nil {
			return fmt.Errorf("--datapath system needs the kernel's openvswitch module, and it is not loaded: run `modprobe openvswitch`, or use --datapath netdev")
		}
	}
	if c.NoAgent {
		return nil
	}
	for _, program := range []string{"twill", "twill-cni"} {
		if _, err := os.Stat(filepath.Join(c.BinDir, program)); err != nil {
			return fmt.Errorf("%s is not in %s: run `make build`, or bring up the nodes alone with --no-agent", program, c.BinDir)
		}
	}
	return nil
}
