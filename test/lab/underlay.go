package lab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func (l *Lab) underlayNS() string { return l.namespace("underlay") }
func (l *Lab) outsideNS() string  { return l.namespace("outside") }

// addUnderlay makes the network that joins the nodes and the one host on it that is no node. Snooping
// is off because nothing in the lab answers multicast queries.
func (l *Lab) addUnderlay(ctx context.Context) error {
	if err := ip(ctx, "", "netns add "+l.underlayNS(), "netns add "+l.outsideNS()); err != nil {
		return err
	}
	if err := ip(ctx, l.underlayNS(),
		"link set lo up",
		fmt.Sprintf("link add br0 mtu %d type bridge stp_state 0 mcast_snooping 0", l.UnderlayMTU),
		"link set br0 up",
	); err != nil {
		return err
	}
	if err := l.plug(ctx, "outside", l.outsideNS()); err != nil {
		return err
	}
	return ip(ctx, l.outsideNS(),
		"link set lo up",
		"link set eth0 up",
		fmt.Sprintf("addr add %s/%d dev eth0", underlay4(outsideHost), underlayBits4),
		fmt.Sprintf("addr add %s/%d dev eth0 nodad", underlay6(outsideHost), underlayBits6),
		fmt.Sprintf("addr add %s/32 dev lo", Outside4()),
		fmt.Sprintf("addr add %s/128 dev lo nodad", Outside6()),
	)
}

// plug gives the namespace an eth0 on the underlay's bridge. Checksums are not left to hardware that
// is not there: userspace OVS would pass them on unfinished.
func (l *Lab) plug(ctx context.Context, port, namespace string) error {
	if err := ip(ctx, "",
		fmt.Sprintf("link add %s netns %s mtu %d type veth peer name eth0 netns %s mtu %d",
			port, l.underlayNS(), l.UnderlayMTU, namespace, l.UnderlayMTU)); err != nil {
		return err
	}
	if err := ip(ctx, l.underlayNS(), fmt.Sprintf("link set %s addrgenmode none master br0 up", port)); err != nil {
		return err
	}
	return run(ctx, namespace, nil, "", "ethtool", "-K", "eth0", "tx", "off")
}

// unplug removes a port of the underlay's bridge and with it the eth0 at its other end. The kernel
// would do so, too, some time after the namespace went: too late for a node that comes back at once.
func (l *Lab) unplug(port string) error {
	ns, err := netns.GetFromPath(netnsPath(l.underlayNS()))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", l.underlayNS(), err)
	}
	defer ns.Close()
	links, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", l.underlayNS(), err)
	}
	defer links.Close()
	link, err := links.LinkByName(port)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = links.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove link %s of %s: %w", port, l.underlayNS(), err)
	}
	return nil
}
