// Package cluster runs a real Kubernetes on one machine: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, and nodes with a containerd and a kubelet each. Nothing of Kubernetes is faked and no Docker
// is needed.
//
// # Workflow
//
//	c, err := cluster.Up(ctx, cluster.Options{Name: "a", Nodes: 2, Log: t.Logf})
//	defer c.Down(ctx)
//	out, err := c.Kubectl(ctx, "get", "nodes")
//
// Everything that runs is known by its process ID in the cluster's directory, so another process can take a
// cluster down, or enter it: see the program in run.
//
// # Layout
//
// A node is a set of mount, UTS, IPC, network and process namespaces, held by a process 1 of its own (see
// Hold): killing that one is pulling the plug. The control plane has a network namespace of its own, and a
// bridge in a third joins them all; that namespace is also the host beyond the cluster. Nothing touches the
// network of the machine.
//
//	DIR/pki             certificates and kubeconfigs
//	DIR/log             what every program printed
//	DIR/NODE            the disk of a node: kubelet, containerd, CNI, Open vSwitch's database
//
// # Open vSwitch
//
// With OVSHost, a node runs Open vSwitch as a distribution's unit would, and where the kernel has no datapath
// the node's address sits on a bridge of userspace Open vSwitch, br-phy, because its tunnels go out by its own
// bridges only. With OVSPod, Open vSwitch is a pod of the chart.
//
// # Gotchas
//
// kubelet changes sysctls of the whole machine; Down puts them back. Clusters never see each other, so they all
// use the same addresses, but one at a time is all that a machine of two cores takes.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// Options say what to build.
type Options struct {
	// Name tells clusters apart; at most 6 lower case letters and digits. Default "a".
	Name string
	// Nodes is how many nodes, 1 to 9. Default 2.
	Nodes int
	// DualStack gives nodes, pods and Services IPv6 beside IPv4.
	DualStack bool
	// KubeProxy runs kube-proxy on every node; without it somebody else must serve Services.
	KubeProxy bool
	// OVS is where Open vSwitch runs. Default OVSHost.
	OVS OVSMode
	// Programs are what to run, see Build; Images the archives that every node's containerd imports.
	Programs Programs
	Images   []string
	// Log is told about each step, with the time since the start. It may be nil.
	Log func(format string, args ...any)
}

// OVSMode says where Open vSwitch runs.
type OVSMode string

// The two ways that the chart's ovs.mode knows.
const (
	OVSHost OVSMode = "host"
	OVSPod  OVSMode = "daemonset"
)

// Cluster is a running cluster.
type Cluster struct {
	Options
	Dir     string
	Nodes   []*Node
	started time.Time

	mu        sync.Mutex
	processes []*process
}

var nameRule = regexp.MustCompile(`^[a-z0-9]{1,6}$`)

// upTimeout bounds each wait for a part of the cluster; a busy machine of two cores needs a third of it.
const upTimeout = 3 * time.Minute

// Up starts a cluster and returns when every node is registered. Nodes are not Ready: that takes a pod network.
// When it fails, what was started is stopped again.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if o.Name == "" {
		o.Name = "a"
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.OVS == "" {
		o.OVS = OVSHost
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if !nameRule.MatchString(o.Name) || o.Nodes < 1 || o.Nodes > 9 {
		return nil, fmt.Errorf("a cluster %q of %d nodes: the name has 1 to 6 lower case letters and digits, and nodes are 1 to 9", o.Name, o.Nodes)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs root: namespaces, mounts, containerd")
	}
	c := &Cluster{Options: o, Dir: directory(o.Name), started: time.Now()}
	for _, tree := range overlaid() {
		if strings.HasPrefix(c.Dir, tree+"/") {
			return nil, fmt.Errorf("the cluster's directory would be %s, and %s is an overlay on the nodes, below which containerd can mount none: set TMPDIR to another place", c.Dir, tree)
		}
	}
	if err := Remove(ctx, o.Name); err != nil { // what a killed run left
		return nil, err
	}
	if err := c.build(ctx); err != nil {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, c.LogTails(8)), c.Down(down))
	}
	return c, nil
}

func directory(name string) string { return filepath.Join(os.TempDir(), "twill-cluster-"+name) }

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.Dir}, elem...)...)
}

// step tells how far we are.
func (c *Cluster) step(format string, args ...any) {
	c.Log("%6.1fs %s", time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

func (c *Cluster) build(ctx context.Context) error {
	for _, d := range []string{"pki", "log"} {
		if err := os.MkdirAll(c.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := saveSysctls(c.Name); err != nil {
		return err
	}
	for i := range c.Options.Nodes {
		c.Nodes = append(c.Nodes, &Node{Name: fmt.Sprintf("node%d", i+1), index: i + 1, cluster: c})
	}
	if err := c.writePKI(); err != nil {
		return err
	}
	if err := c.addUnderlay(ctx); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	c.step("API server answers")
	if err := each(c.Nodes, func(n *Node) error { return n.start(ctx) }); err != nil {
		return err
	}
	c.step("nodes registered")
	return nil
}

// The address plan, from the ranges for documentation and benchmarks (RFC 5737, RFC 2544, RFC 3849).
const (
	controlPlaneIP  = "198.51.100.10"
	controlPlaneIP6 = "2001:db8:100::10"
	routerIP        = "198.51.100.254"
	routerIP6       = "2001:db8:100::fe"
	// OutsideIP is a host beyond the cluster.
	OutsideIP = "203.0.113.1"
	// PodCIDR and PodCIDR6 are what nodes get their ranges from.
	PodCIDR  = "198.18.0.0/16"
	PodCIDR6 = "2001:db8:42::/48"
	// DNSIP is the address of the cluster's DNS.
	DNSIP = "198.19.0.10"

	serviceCIDR  = "198.19.0.0/20"
	serviceCIDR6 = "2001:db8:43::/112"
	apiServiceIP = "198.19.0.1"
)

// APIServer is the URL of the API server on the underlay.
const APIServer = "https://" + controlPlaneIP + ":6443"

// families joins one value of each family that the cluster has.
func (c *Cluster) families(v4, v6 string) string {
	if c.DualStack {
		return v4 + "," + v6
	}
	return v4
}

// ClusterCIDRs are the ranges that nodes get theirs from.
func (c *Cluster) ClusterCIDRs() []netip.Prefix {
	out := []netip.Prefix{netip.MustParsePrefix(PodCIDR)}
	if c.DualStack {
		out = append(out, netip.MustParsePrefix(PodCIDR6))
	}
	return out
}

// patiently is a time-out for a program: lab.Slow times as long on a slow machine.
func patiently(d time.Duration) string { return (d * lab.Slow()).String() }

// each calls f for all items at once and joins the errors.
func each[T any](items []T, f func(T) error) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() { errs[i] = f(item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Eventually polls until the condition gives nil; else its last error comes back once the time is over, which is
// lab.Slow times as long on a slow machine.
func Eventually(ctx context.Context, within time.Duration, condition func(context.Context) error) error {
	within *= lab.Slow()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", within, err)
		case <-tick.C:
		}
	}
}
