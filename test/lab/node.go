package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/test/ovsd"
)

// Node is one node of a lab. Its number is part of its name and of all its addresses, so there is
// nothing to store: a node exists when its directory does.
type Node struct {
	// Name is node-1, node-2, …
	Name  string
	index int
	lab   *Lab
}

func (l *Lab) node(index int) *Node {
	return &Node{Name: fmt.Sprintf("node-%d", index), index: index, lab: l}
}

// NetNS is the name of the node's network namespace.
func (n *Node) NetNS() string { return n.lab.namespace(fmt.Sprintf("n%d", n.index)) }

func (n *Node) path(elem ...string) string {
	return n.lab.path(append([]string{"nodes", n.Name}, elem...)...)
}

// AdminSocket is where the node's agent answers the operator's tools.
func (n *Node) AdminSocket() string { return n.path("run", "agent.sock") }

// LogFile is where the node's agent logs to.
func (n *Node) LogFile() string { return n.path("agent.log") }

// Addresses are the node's InternalIPs.
func (n *Node) Addresses() []netip.Addr {
	return byFamily(n.lab.Config, underlay4(byte(n.index)), underlay6(byte(n.index)))
}

// PodCIDRs are the ranges of the node's pods.
func (n *Node) PodCIDRs() []netip.Prefix {
	return byFamily(n.lab.Config, podCIDR4(n.index), podCIDR6(n.index))
}

// Interface is the link that carries the node's addresses.
func (n *Node) Interface() string {
	if n.lab.Datapath == "netdev" {
		return "br-phy"
	}
	return "eth0"
}

// OVS is the node's Open vSwitch.
func (n *Node) OVS() *ovsd.OVS { return ovsd.At(n.ovsConfig()) }

func (n *Node) ovsConfig() ovsd.Config {
	return ovsd.Config{Dir: n.path("ovs"), NetNS: netnsPath(n.NetNS())}
}

// Env is what makes twill, ovs-vsctl, ovs-ofctl, ovs-appctl and CNI tools speak to this node
// without further flags.
func (n *Node) Env() []string {
	return append(n.OVS().Env(),
		"TWILL_LAB="+n.lab.Name,
		"TWILL_NODE="+n.Name,
		"TWILL_ADMIN_SOCKET="+n.AdminSocket(),
		"TWILL_PEER_SOCKETS="+n.lab.path("nodes", "{node}", "run", "agent.sock"),
		"CNI_PATH="+n.path("cni", "bin"),
		"NETCONFPATH="+n.path("cni", "net.d"),
		"PATH="+n.lab.BinDir+":"+os.Getenv("PATH"),
	)
}

// Nodes lists the lab's nodes by number.
func (l *Lab) Nodes() []*Node {
	dirs, _ := filepath.Glob(l.path("nodes", "node-*"))
	var nodes []*Node
	for _, dir := range dirs {
		if index, err := nodeIndex(filepath.Base(dir)); err == nil {
			nodes = append(nodes, l.node(index))
		}
	}
	slices.SortFunc(nodes, func(a, b *Node) int { return a.index - b.index })
	return nodes
}

// Node finds a node by name.
func (l *Lab) Node(name string) (*Node, error) {
	index, err := nodeIndex(name)
	if err != nil {
		return nil, err
	}
	n := l.node(index)
	if _, err := os.Stat(n.path()); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %q has no node %q: see `twill-lab status --name %s`, or add it with `twill-lab node add %s`", l.Name, name, l.Name, name)
	}
	return n, nil
}

func nodeIndex(name string) (int, error) {
	number, ok := strings.CutPrefix(name, "node-")
	index, err := strconv.Atoi(number)
	if !ok || err != nil || index < 1 || index > maxNodes || strconv.Itoa(index) != number {
		return 0, fmt.Errorf("%q is no name of a lab's node: they are called node-1 to node-%d", name, maxNodes)
	}
	return index, nil
}

// AddNode adds a node and starts its agent. An empty name takes the lowest number that is free.
func (l *Lab) AddNode(ctx context.Context, name string) (*Node, error) {
	unlock, err := l.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	index := 1
	if name != "" {
		if index, err = nodeIndex(name); err != nil {
			return nil, err
		}
	}
	used := map[int]bool{}
	for _, n := range l.Nodes() {
		used[n.index] = true
	}
	if name != "" && used[index] {
		return nil, fmt.Errorf("lab %q has a %s already: remove it first with `twill-lab node rm %s`", l.Name, name, name)
	}
	for used[index] {
		index++
	}
	if index > maxNodes {
		return nil, fmt.Errorf("lab %q has %d nodes, and its address plan has no room for more", l.Name, maxNodes)
	}
	n := l.node(index)
	err = l.addNode(ctx, n)
	if err == nil && !l.NoAgent {
		err = l.startAgent(ctx, n)
	}
	if err != nil {
		return nil, errors.Join(err, l.removeNode(context.WithoutCancel(ctx), n))
	}
	return n, nil
}

func (l *Lab) addNode(ctx context.Context, n *Node) error {
	for _, d := range []string{"ovs", "run", "cni/bin", "cni/net.d", "cni/cache"} {
		if err := os.MkdirAll(n.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := ip(ctx, "", "netns add "+n.NetNS()); err != nil {
		return err
	}
	if err := l.plug(ctx, n.Name, n.NetNS()); err != nil {
		return err
	}
	if err := ip(ctx, n.NetNS(), "link set lo up"); err != nil {
		return err
	}
	ovs, err := ovsd.Start(ctx, n.ovsConfig())
	if err != nil {
		return fmt.Errorf("start Open vSwitch of %s: %w", n.Name, err)
	}
	if l.Datapath == "netdev" {
		// The addresses are on br-phy, and the kernel would answer ARP for them on eth0 as well, with eth0's own
		// MAC address: what is then sent there passes Open vSwitch by.
		if err := inNetNS(n.NetNS(), func() error {
			return os.WriteFile("/proc/sys/net/ipv4/conf/eth0/arp_ignore", []byte("1"), 0)
		}); err != nil {
			return err
		}
		if err := run(ctx, n.NetNS(), ovs.Env(), "", "ovs-vsctl", "--timeout=20",
			"--", "add-br", "br-phy",
			"--", "set", "bridge", "br-phy", "datapath_type=netdev",
			"--", "add-port", "br-phy", "eth0",
			"--", "set", "interface", "br-phy", fmt.Sprintf("mtu_request=%d", l.UnderlayMTU)); err != nil {
			return err
		}
	}
	if err := n.configureUnderlay(ctx); err != nil {
		return err
	}
	_, err = l.Apply(n.manifest())
	return err
}

// configureUnderlay gives the node its addresses and default routes, as a host's network
// configuration does at boot.
func (n *Node) configureUnderlay(ctx context.Context) error {
	dev := n.Interface()
	lines := []string{"link set eth0 up"}
	if dev != "eth0" { // that one has no addresses then, not even a link-local one
		lines = []string{"link set eth0 addrgenmode none", "link set eth0 up", "link set " + dev + " up"}
	}
	lines = append(lines, byFamily(n.lab.Config,
		fmt.Sprintf("addr add %s/%d dev %s", underlay4(byte(n.index)), underlayBits4, dev),
		fmt.Sprintf("addr add %s/%d dev %s nodad", underlay6(byte(n.index)), underlayBits6, dev))...)
	lines = append(lines, byFamily(n.lab.Config,
		fmt.Sprintf("route add default via %s dev %s", underlay4(outsideHost), dev),
		fmt.Sprintf("route add default via %s dev %s", underlay6(outsideHost), dev))...)
	return ip(ctx, n.NetNS(), lines...)
}

// manifest is the Node object that the cluster would have.
func (n *Node) manifest() []Object {
	var addresses []any
	for _, a := range n.Addresses() {
		addresses = append(addresses, map[string]any{"type": "InternalIP", "address": a.String()})
	}
	addresses = append(addresses, map[string]any{"type": "Hostname", "address": n.Name})
	var cidrs []any
	for _, c := range n.PodCIDRs() {
		cidrs = append(cidrs, c.String())
	}
	o := newObject("Node", "", n.Name)
	o["spec"] = map[string]any{"podCIDR": cidrs[0], "podCIDRs": cidrs}
	o["status"] = map[string]any{"addresses": addresses}
	return []Object{o}
}

// RemoveNode removes a node with its pods; to the others it looks like a Node object that is deleted.
func (l *Lab) RemoveNode(ctx context.Context, name string) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	n, err := l.Node(name)
	if err != nil {
		return err
	}
	return l.removeNode(ctx, n)
}

func (l *Lab) removeNode(ctx context.Context, n *Node) error {
	namespaces := []string{n.NetNS()}
	objects := n.manifest()
	pods, err := l.Pods()
	if err != nil {
		return err
	}
	for _, p := range pods {
		if p.Node == n.Name {
			namespaces = append(namespaces, l.podNS(p.Namespace, p.Name))
			objects = append(objects, p.Manifest()...)
		}
	}
	if err := removeNamespaces(ctx, namespaces, n.path()); err != nil {
		return err
	}
	if err := l.unplug(n.Name); err != nil {
		return err
	}
	for _, p := range pods {
		if p.Node == n.Name {
			if err := l.forget(p); err != nil {
				return err
			}
		}
	}
	if _, err := l.Delete(objects); err != nil {
		return err
	}
	return os.RemoveAll(n.path())
}

// KillOVS kills the node's ovs-vswitchd with SIGKILL, as a crash would; ovsdb-server lives on.
func (l *Lab) KillOVS(ctx context.Context, node string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	return n.OVS().KillDaemon(ctx)
}

// StartOVS starts the node's ovs-vswitchd again, with other_config:flow-restore-wait set first when
// restoreWait, as Open vSwitch's own start-up script does it.
func (l *Lab) StartOVS(ctx context.Context, node string, restoreWait bool) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	return n.OVS().StartDaemon(ctx, restoreWait)
}
