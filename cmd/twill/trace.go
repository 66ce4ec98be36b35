package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
	"github.com/twill-net/twill/flows"
)

// packet is what the user wants traced.
type packet struct {
	from, to, source, proto string
	port                    uint16
}

func traceCommand() *cobra.Command {
	var c client
	var p packet
	var raw bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO",
		Short: "The way of one packet through this node's bridge, table by table",
		Long: `The way of one packet through this node's bridge, table by table, with the owner of each flow it meets.

FROM is a pod of this node (NAMESPACE/NAME), "host" for the node itself, or node/NAME for what comes
from that node through the tunnel; the latter two need --source. TO is a pod of this node or any address.`,
		Example: "  twill trace default/web-0 198.18.2.7 --proto tcp --port 80\n  twill trace node/worker-2 default/web-0 --source 198.18.2.7",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.from, p.to = args[0], args[1]
			var s agent.Status
			if err := c.get(cmd.Context(), "/v1/status", nil, &s); err != nil {
				return err
			}
			spec, err := p.spec(s)
			if err != nil {
				return err
			}
			var t agent.TraceResult
			if err := c.get(cmd.Context(), "/v1/trace", url.Values{"packet": {spec}}, &t); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), t, func(w io.Writer) { traceText(w, s, t, raw) })
		},
	}
	cmd.Flags().StringVar(&p.source, "source", "", "source address, for packets from the host or another node")
	cmd.Flags().StringVar(&p.proto, "proto", "icmp", "icmp (echo request), tcp, udp or sctp")
	cmd.Flags().Uint16Var(&p.port, "port", 0, "destination port")
	cmd.Flags().BoolVar(&raw, "raw", false, "add the text of ofproto/trace")
	c.flags(cmd)
	return cmd
}

// spec writes the packet in the syntax of ofproto/trace (ovs-vswitchd(8)).
func (p packet) spec(s agent.Status) (string, error) {
	to, err := netip.ParseAddr(p.to)
	dst := pod(s, p.to)
	if err != nil && dst == nil {
		return "", fmt.Errorf("TO %q is neither an address nor a pod of this node; give the address of a pod elsewhere", p.to)
	}
	var source netip.Addr
	if p.source != "" {
		if source, err = netip.ParseAddr(p.source); err != nil {
			return "", fmt.Errorf("--source %q is no address", p.source)
		}
	}
	var entry string
	src := pod(s, p.from)
	switch node, isNode := strings.CutPrefix(p.from, "node/"); {
	case src != nil:
		if !source.IsValid() {
			source = common(src.Addresses, to, dst)
		}
		entry = fmt.Sprintf("in_port=%d,dl_src=%s", src.OFPort, src.MAC)
	case p.from == "host" && source.IsValid():
		entry = fmt.Sprintf("in_port=%d,dl_src=%s", flows.GatewayPort, flows.GatewayMAC())
	case isNode && source.IsValid():
		tunnel, ok := peer(s, node)
		if !ok {
			return "", fmt.Errorf("no peer %q; see `twill status` for those this node knows", node)
		}
		field := "tun_src"
		if tunnel.Is6() {
			field = "tun_ipv6_src"
		}
		entry = fmt.Sprintf("in_port=%d,tun_id=%d,%s=%s,dl_src=%s", flows.TunnelPort, s.VNI, field, tunnel, flows.RouterMAC())
	case p.from == "host" || isNode:
		return "", fmt.Errorf("FROM %s needs --source: which address the packet comes from", p.from)
	default:
		return "", fmt.Errorf("FROM %q is no pod of this node; use NAMESPACE/NAME of one, host, or node/NAME (see `twill status`)", p.from)
	}
	if dst != nil && !to.IsValid() {
		to = common(dst.Addresses, source, nil)
	}
	if !source.IsValid() || !to.IsValid() || source.Is4() != to.Is4() {
		return "", fmt.Errorf("%s and %s have no addresses of one family", p.from, p.to)
	}
	proto, err := p.protocol(to.Is4())
	if err != nil {
		return "", err
	}
	srcField, dstField := "nw_src", "nw_dst"
	if to.Is6() {
		srcField, dstField = "ipv6_src", "ipv6_dst"
	}
	return fmt.Sprintf("%s,dl_dst=%s,%s,%s=%s,%s=%s,nw_ttl=64", entry, flows.RouterMAC(), proto, srcField, source, dstField, to), nil
}

// protocol uses the names of fields that ofproto/trace takes in both families.
func (p packet) protocol(v4 bool) (string, error) {
	switch p.proto {
	case "icmp":
		if v4 {
			return "icmp,icmp_type=8", nil
		}
		return "icmp6,icmpv6_type=128", nil
	case "tcp", "udp", "sctp":
		name := p.proto
		if !v4 {
			name += "6"
		}
		return fmt.Sprintf("%s,%s_dst=%d", name, p.proto, p.port), nil
	}
	return "", fmt.Errorf("--proto %q: use icmp, tcp, udp or sctp", p.proto)
}

// common picks the address of the family that the other side has: its address, or one of its pod's.
func common(mine []netip.Addr, other netip.Addr, otherPod *agent.PodStatus) netip.Addr {
	for _, a := range mine {
		if other.IsValid() && a.Is4() == other.Is4() {
			return a
		}
		if otherPod != nil && common(otherPod.Addresses, a, nil).IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

func pod(s agent.Status, name string) *agent.PodStatus {
	for i, p := range s.Pods {
		if p.Namespace+"/"+p.Name == name {
			return &s.Pods[i]
		}
	}
	return nil
}

func peer(s agent.Status, name string) (netip.Addr, bool) {
	for _, p := range s.Peers {
		if p.Node == name {
			return p.Tunnel, true
		}
	}
	return netip.Addr{}, false
}

func traceText(w io.Writer, s agent.Status, t agent.TraceResult, raw bool) {
	fmt.Fprintf(w, "%s on node %s\n", t.Packet, s.Node)
	for _, step := range t.Steps {
		owner := string(step.Owner)
		if owner == "" {
			owner = "-"
		}
		fmt.Fprintf(w, "  %-9s  %-24s  %s\n", step.Table, owner, step.Sentence)
	}
	fmt.Fprintf(w, "%s\n", t.Verdict)
	if raw {
		fmt.Fprintf(w, "\n%s\n", t.Raw)
	}
}
