package lab

import (
	"context"
	"fmt"
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
