package inspect

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
)

// Question is the packet that an operator asks about, in the words of the command line.
type Question struct {
	// From is a pod of this node (NAMESPACE/NAME), "host" for the node itself, or "node/NAME" for what comes
	// from that node through the tunnel. To is a pod of this node, "host", a Service (service/NAMESPACE/NAME, with
	// :PORT behind it or not), or an address.
	From, To string
	// Source is the source address, needed for packets of the host and of other nodes. For a pod it replaces
	// the pod's own, to see what would become of a spoofed packet.
	Source string
	// Proto is icmp (echo request), tcp, udp or sctp. Empty is that of the Service's port, or icmp.
	Proto string
	// Port is the destination port, SourcePort the source port; 0 is no port.
	Port, SourcePort uint16
	// Size is the length of the IP packet in bytes, 0 for a small one.
	Size int
	// Reply makes it a packet of an established connection, in the direction of the answer.
	Reply bool
	// Endpoint is the endpoint of the Service (ADDRESS:PORT) that the packet gets, empty for any.
	Endpoint string
	// Mark is what connection tracking knows of the connection's masquerade (ct_mark), for replies.
	Mark uint32
}

// Query is the question as the query of a URL.
func (q Question) Query() url.Values {
	v := url.Values{"from": {q.From}, "to": {q.To}, "proto": {q.Proto}}
	if q.Source != "" {
		v.Set("source", q.Source)
	}
	if q.Reply {
		v.Set("reply", "1")
	}
	if q.Endpoint != "" {
		v.Set("endpoint", q.Endpoint)
	}
	for name, n := range map[string]int{"port": int(q.Port), "sport": int(q.SourcePort), "size": q.Size, "mark": int(q.Mark)} {
		if n != 0 {
			v.Set(name, strconv.Itoa(n))
		}
	}
	return v
}

// parseQuestion is the reverse of Query.
func parseQuestion(v url.Values) (Question, error) {
	q := Question{From: v.Get("from"), To: v.Get("to"), Source: v.Get("source"), Proto: v.Get("proto"), Reply: v.Get("reply") != "", Endpoint: v.Get("endpoint")}
	for _, n := range []struct {
		name string
		bits int
		set  func(uint64)
	}{
		{"port", 16, func(x uint64) { q.Port = uint16(x) }},
		{"sport", 16, func(x uint64) { q.SourcePort = uint16(x) }},
		{"size", 31, func(x uint64) { q.Size = int(x) }},
		{"mark", 31, func(x uint64) { q.Mark = uint32(x) }},
	} {
		if text := v.Get(n.name); text != "" {
			x, err := strconv.ParseUint(text, 10, n.bits)
			if err != nil {
				return q, bad("%s %q: it is no number of %d bits", n.name, text, n.bits)
			}
			n.set(x)
		}
	}
	if q.From == "" || q.To == "" {
		return q, bad("both FROM and TO are needed")
	}
	return q, nil
}

// packet is a question with its names resolved.
type packet struct {
	Question
	src, dst netip.Addr
	pod      *flows.Attachment // the sender, if it is a pod of this node
	peer     *flows.Node       // the sender's node, if that is another one
	entry    string            // how the packet enters, in the syntax of ofproto/trace
	endpoint netip.AddrPort    // the one that a Service shall choose; not valid for any
	meant    netip.Addr        // dst before the host translated a node port; not valid if it did not
}

// resolve finds the addresses and the port of a question.
func resolve(w *flows.World, q Question) (packet, error) {
	p := packet{Question: q}
	var err error
	target := podNamed(w, q.To)
	if strings.HasPrefix(q.To, servicePrefix) {
		addresses, err := aim(w, &p.Question)
		if err != nil {
			return p, err
		}
		target = &flows.Attachment{Addresses: addresses}
	}
	p.dst, err = netip.ParseAddr(q.To)
	if err != nil && target == nil && q.To != "host" {
		return p, notFound{fmt.Errorf("TO %q is neither an address nor a pod of node %s (see `twill status pods`) nor service/NAMESPACE/NAME; give the address of a pod elsewhere", q.To, w.Node.Name)}
	}
	if q.Source != "" {
		if p.src, err = netip.ParseAddr(q.Source); err != nil {
			return p, bad("--source %q is no address", q.Source)
		}
	}
	if err := p.enter(w, target); err != nil {
		return p, err
	}
	switch {
	case p.dst.IsValid():
	case target != nil:
		p.dst = common(target.Addresses, p.src, nil)
	default:
		p.dst = common(hostSources(w), p.src, nil)
	}
	if !p.src.IsValid() || !p.dst.IsValid() || p.src.Is4() != p.dst.Is4() {
		return p, bad("%s and %s have no addresses of one family", q.From, q.To)
	}
	if _, err := p.protocol(); err != nil {
		return p, err
	}
	if q.Endpoint != "" {
		if p.endpoint, err = netip.ParseAddrPort(q.Endpoint); err != nil {
			return p, bad("--endpoint %q is no ADDRESS:PORT (an IPv6 address in brackets)", q.Endpoint)
		}
	}
	if p.pod == nil && p.peer == nil && !p.Reply && ofHost(w.Node, p.dst) && atNodePort(w, p.Proto, p.Port) != nil {
		p.meant, p.dst = p.dst, flows.NodePortAddress(p.dst.Is4()) // the host's nftables do that
	}
	if p.pod == nil && p.peer == nil && !p.Reply {
		if s, own := w.StandIn(p.dst); own && servedAt(w, p.Proto, p.dst, p.Port) != nil {
			p.meant, p.dst = p.dst, s // and that
		}
	}
	return p, nil
}

// enter says by which port the packet comes in, and with which source address.
func (p *packet) enter(w *flows.World, target *flows.Attachment) error {
	from := podNamed(w, p.From)
	if a, err := netip.ParseAddr(p.From); err == nil {
		from = podAt(w, a)
		if from == nil {
			return notFound{fmt.Errorf("FROM %s is the address of no pod of node %s; for another sender use host or node/NAME with --source %s", a, w.Node.Name, a)}
		}
		p.src = a
	}
	node, isNode := strings.CutPrefix(p.From, "node/")
	switch {
	case from != nil:
		p.pod = from
		if !p.src.IsValid() {
			p.src = common(from.Addresses, p.dst, target)
		}
		if !p.src.IsValid() && p.To == "host" {
			p.src = from.Addresses[0]
		}
		p.entry = fmt.Sprintf("in_port=%d,dl_src=%s", from.OFPort, from.MAC)
	case p.From == "host" || isNode && node == w.Node.Name:
		if !p.src.IsValid() {
			p.src = common(hostSources(w), p.dst, target)
		}
		p.entry = fmt.Sprintf("in_port=%d,dl_src=%s", flows.GatewayPort, flows.GatewayMAC())
	case isNode:
		peer, ok := w.Peers[node]
		if !ok {
			return notFound{fmt.Errorf("no peer %q; see `twill status peers` for those that node %s knows", node, w.Node.Name)}
		}
		if !p.src.IsValid() {
			p.src = common(gateways(peer), p.dst, target)
		}
		p.peer = &peer
		tunnel, ok := peer.TunnelAddress(w.Tunnel.Local)
		if !ok {
			return bad("node %s has no address of the family of the tunnel", node)
		}
		field, local := "tun_src", "tun_dst"
		if tunnel.Is6() {
			field, local = "tun_ipv6_src", "tun_ipv6_dst"
		}
		p.entry = fmt.Sprintf("in_port=%d,tun_id=%d,%s=%s,%s=%s,dl_src=%s", flows.TunnelPort, w.Tunnel.VNI, field, tunnel, local, w.Tunnel.Local, flows.RouterMAC())
	default:
		return notFound{fmt.Errorf("FROM %q is no pod of node %s; use NAMESPACE/NAME of one, host, or node/NAME (see `twill status pods`)", p.From, w.Node.Name)}
	}
	return nil
}

// gateways are the addresses by which a node itself speaks to pods.
func gateways(n flows.Node) []netip.Addr {
	var out []netip.Addr
	for _, c := range n.PodCIDRs {
		out = append(out, flows.Gateway(c))
	}
	return out
}

func hostSources(w *flows.World) []netip.Addr { return append(gateways(w.Node), w.Node.Addresses...) }

// common picks the address of the family that the other side has: its address, or one of its pod's.
func common(mine []netip.Addr, other netip.Addr, otherPod *flows.Attachment) netip.Addr {
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

// spec writes the packet in the syntax of ofproto/trace (ovs-vswitchd(8)).
func (p packet) spec() string {
	proto, _ := p.protocol() // resolve has seen it
	src, dst := "nw_src", "nw_dst"
	if p.dst.Is6() {
		src, dst = "ipv6_src", "ipv6_dst"
	}
	mark := ""
	if p.Mark != 0 {
		mark = fmt.Sprintf(",ct_mark=%#x", p.Mark)
	}
	return fmt.Sprintf("%s,dl_dst=%s,%s,%s=%s,%s=%s,nw_ttl=64"+mark, p.entry, flows.RouterMAC(), proto, src, p.src, dst, p.dst)
}

// protocol uses the names of fields that ofproto/trace takes in both families.
func (p packet) protocol() (string, error) {
	v4 := p.dst.Is4()
	switch p.Proto {
	case "icmp", "":
		typ := map[bool]int{true: 8, false: 128}[v4] // echo request: RFC 792, RFC 4443
		if p.Reply {
			typ = map[bool]int{true: 0, false: 129}[v4]
		}
		if v4 {
			return fmt.Sprintf("icmp,icmp_type=%d", typ), nil
		}
		return fmt.Sprintf("icmp6,icmpv6_type=%d", typ), nil
	case "tcp", "udp", "sctp":
		name := p.Proto
		if !v4 {
			name += "6"
		}
		begins := "" // the first packet of a connection, or the answer to it
		if p.Proto == "tcp" {
			begins = map[bool]string{false: ",tcp_flags=syn", true: ",tcp_flags=syn|ack"}[p.Reply]
		}
		return fmt.Sprintf("%s,%s_src=%d,%s_dst=%d%s", name, p.Proto, p.SourcePort, p.Proto, p.Port, begins), nil
	}
	return "", bad("--proto %q: use icmp, tcp, udp or sctp", p.Proto)
}

// words name the packet for a reader.
func (p packet) words(w *flows.World, names *flows.Names) string {
	what := "ICMP echo request"
	switch {
	case p.Proto == "icmp" || p.Proto == "":
		if p.Reply {
			what = "ICMP echo reply"
		}
	case p.Reply:
		what = fmt.Sprintf("reply from %s port %d", strings.ToUpper(p.Proto), p.SourcePort)
	default:
		what = fmt.Sprintf("%s to port %d", strings.ToUpper(p.Proto), p.Port)
	}
	to := names.Address(p.dst.String())
	if service := serviceAt(w, p.dst); service != "" {
		to = fmt.Sprintf("%s (%s)", p.dst, service)
	}
	if p.meant.IsValid() {
		to = fmt.Sprintf("%s, which the host translates to %s", names.Address(p.meant.String()), to)
	}
	return fmt.Sprintf("%s from %s to %s", what, names.Address(p.src.String()), to)
}
