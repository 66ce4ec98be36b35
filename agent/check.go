package agent

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/ovs"
)

// Results of a Finding.
const (
	CheckOK      = "ok"
	CheckFailed  = "failed"
	CheckSkipped = "skipped"
)

// Finding is what one check of `twill check` found.
type Finding struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	// Detail says what was found, Remedy what to do about a failure.
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

// checker looks at one node with the settings that its agent would have. It changes nothing.
type checker struct {
	cfg      Config
	set      settings
	proc     string
	db       *ovs.DB     // nil where OVSDB does not answer
	vswitchd *ovs.Daemon // nil where ovs-vswitchd does not answer
	findings []Finding
}

func (c *checker) ok(check, format string, args ...any) {
	c.findings = append(c.findings, Finding{Check: check, Result: CheckOK, Detail: fmt.Sprintf(format, args...)})
}

func (c *checker) fail(check, remedy, format string, args ...any) {
	c.findings = append(c.findings, Finding{Check: check, Result: CheckFailed, Detail: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (c *checker) skip(check, format string, args ...any) {
	c.findings = append(c.findings, Finding{Check: check, Result: CheckSkipped, Detail: fmt.Sprintf(format, args...)})
}

// Check looks whether this node can carry an agent with these settings, before or after it is installed. status is
// the agent's, if one answers. proc is where procfs is, normally /proc. The error is about the settings.
func Check(ctx context.Context, cfg Config, status *Status, proc string) ([]Finding, error) {
	set, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	c := &checker{cfg: cfg, set: set, proc: proc}
	defer c.close()
	installed := c.openvswitch(ctx)
	c.ports(installed)
	c.underlay(status)
	c.podCIDRs(status)
	c.clock(status)
	c.overlaps(status)
	c.sysctls()
	c.otherCNIs()
	return c.findings, nil
}

func (c *checker) close() {
	if c.db != nil {
		c.db.Close()
	}
	if c.vswitchd != nil {
		c.vswitchd.Close()
	}
}

// openvswitch looks at the kernel module, both daemons and the bridge; it says whether the bridge is ours.
func (c *checker) openvswitch(ctx context.Context) (ours bool) {
	kernel := host.KernelDatapath()
	switch {
	case kernel:
		c.ok("kernel", "kernel %s has the openvswitch datapath", kernelRelease())
	case c.cfg.DatapathType == "system":
		c.fail("kernel", "modprobe openvswitch geneve vxlan, or set --datapath-type=netdev", "kernel %s has not loaded the module openvswitch", kernelRelease())
	default:
		c.ok("kernel", "kernel %s has no openvswitch module loaded; the userspace datapath serves, more slowly", kernelRelease())
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: c.cfg.OVSDB, Log: quiet})
	if err != nil {
		c.fail("ovsdb", "start openvswitch-switch (or set --ovsdb to its socket)", "%v", err)
	} else {
		c.db = db
		c.ok("ovsdb", "answers at %s", c.cfg.OVSDB)
	}
	c.daemon(ctx)
	if db == nil {
		c.skip("bridge", "without OVSDB nobody knows whose %s is", c.cfg.Bridge)
		return false
	}
	ids, exists := db.BridgeIDs(c.cfg.Bridge)
	switch {
	case !exists:
		c.ok("bridge", "%s does not exist yet; the agent makes it", c.cfg.Bridge)
	case ids["owner"] == bridgeMark()["owner"]:
		c.ok("bridge", "%s is Twill's", c.cfg.Bridge)
		c.datapath(ctx)
		return true
	default:
		c.fail("bridge", "set --bridge to another name, or remove that bridge if nobody needs it", "%s exists and is somebody else's (external_ids %v)", c.cfg.Bridge, ids)
	}
	return false
}

func (c *checker) daemon(ctx context.Context) {
	const name, remedy = "ovs-vswitchd", "start openvswitch-switch (or set --ovs-rundir to the directory of its sockets)"
	d, err := ovs.DialDaemon(ctx, c.cfg.OVSRunDir)
	if err != nil {
		c.fail(name, remedy, "%v", err)
		return
	}
	c.vswitchd = d
	text, err := d.Call(ctx, "version")
	if err != nil {
		c.fail(name, remedy, "%v", err)
		return
	}
	text = strings.TrimSpace(text)
	if err := errVersion(text); err != nil {
		c.fail(name, remedyOVS(), "%v", err)
		return
	}
	c.ok(name, "%s", text)
}

// datapath looks at what the datapath of our bridge can do.
func (c *checker) datapath(ctx context.Context) {
	const name = "datapath"
	if c.vswitchd == nil {
		return // said already
	}
	text, err := c.vswitchd.Call(ctx, "dpif/show-dp-features", c.cfg.Bridge)
	if err != nil {
		c.fail(name, "see what ovs-vswitchd logs about the bridge", "%v", err)
		return
	}
	if err := errFeatures(text); err != nil {
		c.fail(name, remedyDatapath, "%v", err)
		return
	}
	c.ok(name, "can do what flows need")
}

// ports looks whether somebody else listens on the tunnel's UDP port.
func (c *checker) ports(ours bool) {
	name := fmt.Sprintf("port %d", c.set.tunnelPort)
	used, err := c.udpInUse(c.set.tunnelPort)
	switch {
	case err != nil:
		c.fail(name, "run as root, with /proc mounted", "%v", err)
	case used && ours:
		c.ok(name, "UDP port %d is the tunnel's", c.set.tunnelPort)
	case used:
		c.fail(name, "find its owner with `ss -lunp`; stop it, or set --tunnel-port on every node", "UDP port %d is in use, and not by Twill", c.set.tunnelPort)
	default:
		c.ok(name, "UDP port %d is free; it has to be open between all nodes", c.set.tunnelPort)
	}
}

// udpInUse reads the local ports of proc_net_udp(5).
func (c *checker) udpInUse(port uint16) (bool, error) {
	want := fmt.Sprintf(":%04X", port)
	for _, file := range []string{"net/udp", "net/udp6"} {
		text, err := os.ReadFile(filepath.Join(c.proc, file))
		if os.IsNotExist(err) && file == "net/udp6" {
			continue
		}
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasSuffix(f[1], want) {
				return true, nil
			}
		}
	}
	return false, nil
}

// leastMTU is the smallest that IPv6 allows on a link (RFC 8200 §5).
const leastMTU = 1280

func (c *checker) underlay(status *Status) {
	var nodes []netip.Addr
	if status != nil && status.Address.IsValid() {
		nodes = []netip.Addr{status.Address}
	}
	if len(nodes) == 0 && !c.set.tunnelAddress.IsValid() && c.cfg.TunnelInterface == "" {
		c.skip("MTU", "which link carries the tunnel is known from the Node object: ask a running agent, or set --tunnel-interface")
		return
	}
	under, err := host.ChooseUnderlay(nodes, host.Want{Address: c.set.tunnelAddress, Interface: c.cfg.TunnelInterface})
	if err != nil {
		c.fail("MTU", "set --tunnel-address or --tunnel-interface to an address or link of this host", "%v", err)
		return
	}
	fits, mtu := host.PodMTU(under), c.cfg.MTU
	if mtu == 0 {
		mtu = fits
	}
	switch {
	case mtu > fits:
		c.fail("MTU", fmt.Sprintf("set --mtu to at most %d, or raise the MTU of %s", fits, under.Link), "--mtu %d does not fit: %s has %d bytes, of which %d are left in the tunnel", mtu, under.Link, under.LinkMTU, fits)
	case mtu < leastMTU:
		c.fail("MTU", "raise the MTU of "+under.Link, "pods would have %d bytes, and IPv6 needs %d", mtu, leastMTU)
	default:
		c.ok("MTU", "%d bytes for pods, %d on %s", mtu, under.LinkMTU, under.Link)
	}
	c.arp(under.Link)
}

// arp looks, where the node's address is on a bridge of userspace Open vSwitch, at the links below it. The kernel
// answers ARP for every address of the host on every link, with that link's MAC address, unless arp_ignore is set
// (Linux, ip-sysctl: the larger of conf/all and conf/LINK counts). A peer that learns that one sends tunnel packets past Open vSwitch.
func (c *checker) arp(underlay string) {
	if c.db == nil {
		return // said already
	}
	ignores := func(name string) bool {
		v := c.sysctl("net/ipv4/conf/" + name + "/arp_ignore")
		return v != "" && v != "0"
	}
	for _, link := range c.db.LinksBelow(underlay) {
		if ignores("all") || ignores(link) {
			c.ok("ARP", "the kernel does not answer on %s for %s", link, underlay)
			continue
		}
		c.fail("ARP", fmt.Sprintf("sysctl -w net.ipv4.conf.%s.arp_ignore=1, and in /etc/sysctl.d", link),
			"the kernel answers on %s for the address of %s, with another MAC address: peers that learn it reach no pods of this node", link, underlay)
	}
}

// sysctl reads one by its path below /proc/sys; empty where it cannot be read.
func (c *checker) sysctl(name string) string {
	text, err := os.ReadFile(filepath.Join(c.proc, "sys", filepath.FromSlash(name)))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (c *checker) podCIDRs(status *Status) {
	switch {
	case status == nil:
		c.skip("podCIDR", "no agent answers that could say what the Node has: kubectl get node %s -o jsonpath='{.spec.podCIDRs}'", c.cfg.NodeName)
	case len(status.PodCIDRs) == 0:
		c.fail("podCIDR", "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set spec.podCIDR of the Node", "Node %s has none", status.Node)
	default:
		c.ok("podCIDR", "%s", joinPrefixes(status.PodCIDRs))
	}
}

func (c *checker) clock(status *Status) {
	switch {
	case status == nil || status.ClockSkew == nil:
		c.skip("clock", "no agent answers that has compared it with the API server's")
	case source.Skewed(seconds(*status.ClockSkew)):
		c.fail("clock", source.ClockRemedy, "%s", source.DescribeSkew(seconds(*status.ClockSkew)))
	default:
		c.ok("clock", "agrees with the API server's within %s", source.ClockTolerance)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func joinPrefixes(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

func (c *checker) overlaps(status *Status) {
	ranges := slices.Clone(c.set.clusterCIDRs)
	if status != nil {
		ranges = append(ranges, status.PodCIDRs...)
	}
	if len(ranges) == 0 {
		c.skip("addresses", "neither --cluster-cidr nor an agent says which ranges pods have")
		return
	}
	found, err := host.Overlaps(ranges, c.cfg.Gateway)
	switch {
	case err != nil:
		c.fail("addresses", "run as root", "%v", err)
	case len(found) > 0:
		c.fail("addresses", "give pods another range (--cluster-cidr), or the host other addresses", "%s", strings.Join(found, "; "))
	default:
		c.ok("addresses", "no address or route of the host lies in %s", joinPrefixes(ranges))
	}
}

// sysctls looks at forwarding, which the agent sets, and at the strict reverse path filter (RFC 3704), which it
// loosens on its own link: a read-only /proc/sys is what goes wrong.
func (c *checker) sysctls() {
	wanted := []string{"net/ipv4/ip_forward"}
	if slices.ContainsFunc(c.set.clusterCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		wanted = append(wanted, "net/ipv6/conf/all/forwarding")
	}
	for _, name := range wanted {
		dotted := strings.ReplaceAll(name, "/", ".")
		switch v := c.sysctl(name); v {
		case "1", "2":
			c.ok("forwarding", "%s = %s", dotted, v)
		case "":
			c.fail("forwarding", "mount /proc/sys, and enable the address family in the kernel", "%s cannot be read", dotted)
		default:
			c.fail("forwarding", fmt.Sprintf("sysctl -w %s=1, and in /etc/sysctl.d; the agent sets it at its start", dotted), "%s = %s", dotted, v)
		}
	}
	all, own := c.sysctl("net/ipv4/conf/all/rp_filter"), c.sysctl("net/ipv4/conf/"+c.cfg.Gateway+"/rp_filter")
	if all == "1" && own != "2" && own != "" {
		c.fail("rp_filter", fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2; the agent sets it", c.cfg.Gateway), "net.ipv4.conf.all.rp_filter = 1 is strict, and net.ipv4.conf.%s.rp_filter = %s does not loosen it", c.cfg.Gateway, own)
		return
	}
	c.ok("rp_filter", "net.ipv4.conf.all.rp_filter = %s does not drop replies", cmp.Or(all, "unset"))
}

// otherCNIs looks for a network configuration that the runtime would take before ours: it takes the first name.
func (c *checker) otherCNIs() {
	entries, err := os.ReadDir(c.cfg.CNIConfDir)
	if err != nil {
		if os.IsNotExist(err) {
			c.ok("cni", "%s does not exist yet; the agent makes it", c.cfg.CNIConfDir)
			return
		}
		c.fail("cni", "run as root", "%v", err)
		return
	}
	var first, others []string
	for _, e := range entries {
		name := e.Name()
		if name == c.cfg.CNIConfName || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name)) {
			continue
		}
		if name < c.cfg.CNIConfName {
			first = append(first, name)
		} else {
			others = append(others, name)
		}
	}
	switch {
	case len(first) > 0:
		c.fail("cni", "remove it once no pod of that network is left, or choose a --cni-conf-name that sorts before it",
			"the runtime would use %s in %s and not Twill's %s", strings.Join(first, ", "), c.cfg.CNIConfDir, c.cfg.CNIConfName)
	case len(others) > 0:
		c.ok("cni", "%s comes before %s in %s", c.cfg.CNIConfName, strings.Join(others, ", "), c.cfg.CNIConfDir)
	default:
		c.ok("cni", "no other network in %s", c.cfg.CNIConfDir)
	}
}
