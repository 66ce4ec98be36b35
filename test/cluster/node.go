package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/twill-net/twill/agent/host"
)

// Node is one node.
type Node struct {
	Name    string
	index   int
	cluster *Cluster
	holder  *process
}

// IP is the node's IPv4 address on the underlay.
func (n *Node) IP() string { return fmt.Sprintf("198.51.100.%d", 10+n.index) }

// Zone is the node's zone: three take turns.
func (n *Node) Zone() string { return fmt.Sprint("zone-", n.index%3) }

// IP6 is the node's IPv6 address on the underlay.
func (n *Node) IP6() string { return fmt.Sprintf("2001:db8:100::%d", 10+n.index) }

// NetNS is the name of the node's network namespace.
func (n *Node) NetNS() string { return n.cluster.namespace(n.Name) }

func (n *Node) path(elem ...string) string {
	return n.cluster.path(append([]string{n.Name}, elem...)...)
}

// Command is a command that will run on the node, in all its namespaces.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append(n.enter(), argv...)...)
}

// Exec runs a command on the node and returns what it printed.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	out, err := output(ctx, "", append(append([]string{"nsenter"}, n.enter()...), argv...)...)
	return strings.TrimSpace(out), err
}

func (n *Node) enter() []string {
	return []string{"-t", fmt.Sprint(n.holder.pid), "-m", "-u", "-i", "-n", "-p", "--"}
}

// spawn starts a program of the node.
func (n *Node) spawn(name string, argv ...string) (*process, error) {
	p, err := n.cluster.spawn(n.Name+"-"+name, append(append([]string{"nsenter"}, n.enter()...), argv...)...)
	if err == nil {
		p.entered = true
	}
	return p, err
}

// Stop ends one program of the node by a signal: containerd, kubelet, kube-proxy, ovsdb-server, ovs-vswitchd.
func (n *Node) Stop(name string, signal syscall.Signal) error {
	p := n.cluster.process(n.Name + "-" + name)
	if p == nil {
		return fmt.Errorf("%s runs no %s", n.Name, name)
	}
	p.stop(signal)
	return nil
}

// start boots the node, and returns when it is registered.
func (n *Node) start(ctx context.Context) error {
	if err := os.MkdirAll(n.path("upper/etc"), 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"upper/etc/resolv.conf": "nameserver " + controlPlaneIP + "\n",
		"upper/etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", n.IP(), n.Name),
	} {
		if err := os.WriteFile(n.path(name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	bin := n.path("upper/opt/cni/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := copyFile(n.cluster.Programs.path("loopback"), filepath.Join(bin, "loopback")); err != nil {
		return err
	}
	if err := n.startHolder(); err != nil {
		return err
	}
	if err := run(ctx, "", "ip", "netns", "attach", n.NetNS(), fmt.Sprint(n.holder.pid)); err != nil {
		return err
	}
	if err := n.cluster.plug(ctx, n.NetNS(), n.Name); err != nil {
		return err
	}
	if err := addCgroups(groupOf(n.cluster.Name, n.Name)); err != nil {
		return err
	}
	if err := n.startNetwork(ctx); err != nil {
		return err
	}
	if err := n.StartContainerd(ctx); err != nil {
		return err
	}
	for _, image := range n.cluster.Images {
		if _, err := n.Exec(ctx, "ctr", "-n", "k8s.io", "images", "import", image); err != nil {
			return err
		}
	}
	if err := n.StartKubelet(); err != nil {
		return err
	}
	if n.cluster.KubeProxy {
		if err := n.startProxy(); err != nil {
			return err
		}
	}
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		_, err := n.cluster.Kubectl(ctx, "get", "node", n.Name)
		return err
	})
}

// Reboot is a power failure: every process dies at once, /run and the network are lost, the disk stays. The node
// comes up again by itself, as a machine would.
func (n *Node) Reboot(ctx context.Context) error {
	n.holder.stop(syscall.SIGKILL)
	if err := run(ctx, "", "ip", "netns", "del", n.NetNS()); err != nil {
		return err
	}
	// The kernel takes the link away with the namespace, but some time later.
	_ = run(ctx, "", "ip", "-n", n.cluster.namespace("net"), "link", "del", n.Name)
	return n.start(ctx)
}

// startNetwork gives the node its address, on userspace Open vSwitch where its tunnels need that.
func (n *Node) startNetwork(ctx context.Context) error {
	if n.cluster.OVS == OVSHost {
		if err := n.startOVS(ctx); err != nil {
			return err
		}
		if !host.KernelDatapath() {
			if err := n.addPhysicalBridge(ctx); err != nil {
				return err
			}
			return ip(ctx, n.NetNS(), configure("br-phy", n.IP(), n.IP6())...)
		}
	}
	return ip(ctx, n.NetNS(), configure("eth0", n.IP(), n.IP6())...)
}

// addPhysicalBridge makes the node's link a port of a bridge of userspace Open vSwitch.
func (n *Node) addPhysicalBridge(ctx context.Context) error {
	// The kernel would answer ARP for the addresses of br-phy on eth0 as well, with eth0's own MAC address: whoever learns
	// that sends tunnel packets past Open vSwitch, to a host that answers "port unreachable".
	if err := run(ctx, "", "nsenter", "--net="+netnsPath(n.NetNS()), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_ignore"); err != nil {
		return err
	}
	if _, err := n.Exec(ctx, "ovs-vsctl", "--timeout=20", "--may-exist", "add-br", "br-phy",
		"--", "set", "bridge", "br-phy", "datapath_type=netdev", "--", "--may-exist", "add-port", "br-phy", "eth0"); err != nil {
		return err
	}
	// After a reboot the database has it all, and ovs-vsctl does not wait.
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		return run(ctx, "", "ip", "-n", n.NetNS(), "link", "show", "br-phy")
	})
}

// startOVS starts Open vSwitch as the unit of a distribution does, with its sockets at the usual paths. Its database is
// not: that may be a link, and the machine may have one.
func (n *Node) startOVS(ctx context.Context) error {
	db := n.path("conf.db")
	if !exists(db) {
		if _, err := n.Exec(ctx, "ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema"); err != nil {
			return err
		}
	}
	if _, err := n.spawn("ovsdb-server", "ovsdb-server", db, "--remote=punix:/run/openvswitch/db.sock", "--pidfile"); err != nil {
		return err
	}
	if err := Eventually(ctx, upTimeout, func(ctx context.Context) error {
		_, err := n.Exec(ctx, "ovs-vsctl", "--timeout=2", "--no-wait", "init")
		return err
	}); err != nil {
		return err
	}
	_, err := n.spawn("ovs-vswitchd", "ovs-vswitchd", "--pidfile")
	return err
}

// StartContainerd starts containerd and waits until it answers.
func (n *Node) StartContainerd(ctx context.Context) error {
	config := n.path("containerd.toml")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o644); err != nil {
		return err
	}
	if _, err := n.spawn("containerd", "containerd", "--config", config); err != nil {
		return err
	}
	return Eventually(ctx, upTimeout, func(ctx context.Context) error {
		_, err := n.Exec(ctx, "ctr", "version")
		return err
	})
}

// restrict_oom_score_adj: a container that may not lower its score cannot run where the machine is one itself.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet() error {
	c := n.cluster
	config := n.path("kubelet.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
tlsCertFile: %q
tlsPrivateKeyFile: %q
address: %s
healthzBindAddress: 127.0.0.1
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
maxPods: 250
podPidsLimit: -1
nodeStatusUpdateFrequency: 4s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
enforceNodeAllocatable: [pods]
`, c.pki("ca.crt"), c.pki(n.Name+"-serving.crt"), c.pki(n.Name+"-serving.key"), n.IP(), groupOf(c.Name, n.Name), DNSIP), 0o644); err != nil {
		return err
	}
	_, err := n.spawn("kubelet", c.Programs.path("kubelet"), "--config", config, "--kubeconfig", c.Kubeconfig(n.Name),
		"--hostname-override", n.Name, "--node-ip", c.families(n.IP(), n.IP6()), "--root-dir", "/var/lib/kubelet", "--v", "2",
		"--node-labels", "topology.kubernetes.io/zone="+n.Zone())
	return err
}

// startProxy starts kube-proxy. It hides the client of every connection to a Service behind the node: a pod answers
// another pod through the bridge, past the host that must put the address of the Service back.
func (n *Node) startProxy() error {
	c := n.cluster
	config := n.path("proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
mode: nftables
oomScoreAdj: 0
clusterCIDR: %q
hostnameOverride: %s
bindAddress: %s
metricsBindAddress: 127.0.0.1:10249
nftables: {masqueradeAll: true}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, c.Kubeconfig("proxy"), c.families(PodCIDR, PodCIDR6), n.Name, n.IP()), 0o644); err != nil {
		return err
	}
	_, err := n.spawn("kube-proxy", c.Programs.path("kube-proxy"), "--config", config)
	return err
}

// Ready waits until every node is Ready.
func (c *Cluster) Ready(ctx context.Context, within time.Duration) error {
	return Eventually(ctx, within, func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "get", "nodes", "-o",
			`jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		if err != nil {
			return err
		}
		if nodes := strings.Fields(out); len(nodes) != len(c.Nodes) || strings.Count(out, "=True") != len(nodes) {
			return fmt.Errorf("nodes are %s", out)
		}
		return nil
	})
}

// Program is the path of one of the cluster's programs.
func (p Programs) path(name string) string {
	if found := filepath.Join(p.Dir, name); exists(found) {
		return found
	}
	return name // by PATH: etcd
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// PID is the node's process 1, for nsenter(1).
func (n *Node) PID() int { return n.holder.pid }
