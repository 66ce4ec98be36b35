package flows

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Names turns the numbers of a flow into the objects behind them.
type Names struct {
	ports map[uint32]string
	hosts map[netip.Addr]string
	cidrs []namedCIDR
	// policy names what numbers of policies stand for.
	policy policyNames
}

type namedCIDR struct {
	prefix netip.Prefix
	name   string
}

// NamesOf reads the names off a World. A nil World knows only the names of the pipeline.
func NamesOf(w *World) *Names {
	n := &Names{
		ports:  map[uint32]string{TunnelPort: "the tunnel", GatewayPort: "the host"},
		hosts:  map[netip.Addr]string{},
		policy: policyNamesOf(w),
	}
	if w == nil {
		return n
	}
	node := func(x Node) {
		for _, c := range x.PodCIDRs {
			n.cidrs = append(n.cidrs, namedCIDR{c, "pods of node " + x.Name})
			n.hosts[Gateway(c)] = "gateway of node " + x.Name
		}
		for _, a := range x.Addresses {
			n.hosts[a] = "node " + x.Name
		}
	}
	node(w.Node)
	for _, p := range w.Peers {
		node(p)
	}
	for _, c := range w.ClusterCIDRs {
		n.cidrs = append(n.cidrs, namedCIDR{c, "pods of the cluster"})
	}
	for a, s := range StandIns(w.Own) {
		n.hosts[s] = a.String() + " of this node"
	}
	for _, list := range w.Pods {
		for _, a := range list {
			name := podName(a)
			n.ports[a.OFPort] = name
			for _, addr := range a.Addresses {
				n.hosts[addr] = name
			}
		}
	}
	slices.SortFunc(n.cidrs, func(a, b namedCIDR) int { return strings.Compare(a.prefix.String()+a.name, b.prefix.String()+b.name) })
	return n
}

func podName(a Attachment) string {
	name := "pod " + a.Namespace + "/" + a.Pod
	if a.IfName != "eth0" {
		name += " (" + a.IfName + ")"
	}
	return name
}

// Port names an OpenFlow port, given as a decimal, hexadecimal or symbolic number.
func (n *Names) Port(value string) string {
	p, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return "port " + value
	}
	if name, ok := n.ports[uint32(p)]; ok {
		return name
	}
	return fmt.Sprintf("port %d (no such pod)", p)
}

// Address names an address or range: "198.18.1.7 (pod shop/db)". Without a name it is the text itself.
func (n *Names) Address(value string) string {
	switch value {
	case "0.0.0.0", "::":
		return "no address (" + value + ")"
	case "fe80::/10":
		return value + " (link-local)"
	case "224.0.0.0/4", "ff00::/8":
		return value + " (multicast)"
	case "255.255.255.255":
		return value + " (broadcast)"
	}
	if a, err := netip.ParseAddr(value); err == nil {
		if name, ok := n.hosts[a]; ok {
			return value + " (" + name + ")"
		}
		return value
	}
	if p, err := netip.ParsePrefix(value); err == nil {
		for _, c := range n.cidrs {
			if c.prefix == p {
				return value + " (" + c.name + ")"
			}
		}
	}
	return value
}
