package cluster

import (
	"context"
	"fmt"
	"strings"
)

const (
	netnsDir = "/run/netns"
	// namespacePrefix begins the name of every network namespace of a cluster.
	namespacePrefix = "twk-"
)

// namespace is the name of one of the cluster's network namespaces.
func (c *Cluster) namespace(part string) string { return namespacePrefix + c.Name + "-" + part }

func netnsPath(name string) string { return netnsDir + "/" + name }

// ip feeds lines to one `ip -batch` inside a namespace.
func ip(ctx context.Context, namespace string, lines ...string) error {
	args := []string{"ip", "-batch", "-"}
	if namespace != "" {
		args = []string{"ip", "-n", namespace, "-batch", "-"}
	}
	return run(ctx, strings.Join(lines, "\n"), args...)
}

// addUnderlay makes the bridge that joins everybody, which is also their router and the host beyond it, and the
// namespace of the control plane.
func (c *Cluster) addUnderlay(ctx context.Context) error {
	underlay, control := c.namespace("net"), c.namespace("cp")
	if err := ip(ctx, "", "netns add "+underlay, "netns add "+control); err != nil {
		return err
	}
	if err := ip(ctx, underlay,
		"link set lo up",
		"link add br0 type bridge stp_state 0 mcast_snooping 0",
		"link set br0 up",
		"addr add "+routerIP+"/24 dev br0",
		"addr add "+routerIP6+"/64 dev br0 nodad",
		"addr add "+OutsideIP+"/32 dev lo",
	); err != nil {
		return err
	}
	if err := finishChecksums(ctx, underlay, "br0"); err != nil {
		return err
	}
	if err := c.plug(ctx, control, "cp"); err != nil {
		return err
	}
	return ip(ctx, control, configure("eth0", controlPlaneIP, controlPlaneIP6)...)
}

// plug gives the namespace an eth0 on the underlay.
func (c *Cluster) plug(ctx context.Context, namespace, port string) error {
	underlay := c.namespace("net")
	if err := ip(ctx, "", fmt.Sprintf("link add %s netns %s type veth peer name eth0 netns %s", port, underlay, namespace)); err != nil {
		return err
	}
	if err := ip(ctx, underlay, fmt.Sprintf("link set %s addrgenmode none master br0 up", port)); err != nil {
		return err
	}
	if err := finishChecksums(ctx, namespace, "eth0"); err != nil {
		return err
	}
	return ip(ctx, namespace, "link set lo up", "link set eth0 addrgenmode none up")
}

// finishChecksums has the checksums of what is sent by a link computed at once: userspace Open vSwitch passes unfinished
// ones on, and connection tracking of the node that gets them takes no such packet for the first of a connection.
func finishChecksums(ctx context.Context, namespace, link string) error {
	return run(ctx, "", "nsenter", "--net="+netnsPath(namespace), "ethtool", "-K", link, "tx", "off")
}

// configure is what a host's network configuration does at boot. Without a default route the addresses of
// Services are unreachable from the host itself.
func configure(dev, ip4, ip6 string) []string {
	return []string{
		"link set " + dev + " up",
		fmt.Sprintf("addr add %s/24 dev %s", ip4, dev),
		fmt.Sprintf("addr add %s/64 dev %s nodad", ip6, dev),
		fmt.Sprintf("route add default via %s dev %s", routerIP, dev),
		fmt.Sprintf("route add default via %s dev %s", routerIP6, dev),
	}
}
