package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// DroppedPacket is a datapath flow that drops, with the packet that it was made for. Open vSwitch makes one for the first
// packet that meets a drop, and it counts the others that the same flows drop; after ten idle seconds it is gone
// (other_config:max-idle). So to look costs the forwarding path nothing, and no packet waits for anybody.
type DroppedPacket struct {
	// From is who sent it into the bridge: "pod default/web-0", "the tunnel", "the host".
	From string `json:"from"`
	// Protocol is tcp, udp, sctp, icmp, icmpv6, arp, "protocol N" or "ethertype N".
	Protocol string `json:"protocol"`
	// Source and Destination are addresses. The kernel's datapath keeps no more of an address than the flow looks at:
	// there they may be a range, or "any".
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// SourcePort and DestinationPort are 0 for what has none, and where the kernel's datapath does not keep them.
	SourcePort      uint16 `json:"sourcePort,omitempty"`
	DestinationPort uint16 `json:"destinationPort,omitempty"`
	// More counts packets that the same datapath flow has dropped since.
	More uint64 `json:"more,omitempty"`
	// Ago is the time in seconds since the last of those. 0: there was only this one, in the last ten seconds.
	Ago float64 `json:"ago,omitempty"`
}

// Bounds on what Drops tells of packets: so many datapath flows are traced, the latest first, and so many are
// listed for each reason and owner.
const (
	mostTraced = 64
	mostLast   = 5
)

// lastDropped finds the packets that were dropped of late, by the reason and the owner of their drop.
func (s *Subject) lastDropped(ctx context.Context) (map[dropKey][]DroppedPacket, error) {
	if s.Megaflows == nil {
		return s.dropped, nil
	}
	text, err := s.Megaflows(ctx)
	if err != nil {
		return nil, fmt.Errorf("the datapath's flows cannot be read: %w", err)
	}
	w, err := s.world()
	if err != nil {
		return nil, err
	}
	var list []megaflow
	for line := range strings.Lines(text) {
		if m, ok := parseMegaflow(line); ok {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b megaflow) int { return cmp.Compare(a.ago, b.ago) })
	list = list[:min(len(list), mostTraced)]
	if len(list) == 0 {
		return nil, nil
	}
	tracer, done, err := s.tracer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	names, datapath := flows.NamesOf(w), s.Datapath()
	out := map[dropKey][]DroppedPacket{}
	for _, m := range list {
		text, err := tracer.Trace(ctx, datapath, m.match)
		if err != nil {
			continue // its connection tracking context is gone, or it is a flow of another bridge
		}
		t, err := flows.ParseTrace(text, s.Bridge)
		if err != nil || !t.Dropped() {
			continue
		}
		key := dropKey{Reason: PortGone}
		if strings.Contains(text, "skipping output to input port") {
			key.Reason = ToItself
		}
		s.View(func(d *flows.Desired, _ *flows.World) {
			last := step(d, names, t.Last(), nil)
			if last.State != "" {
				key = dropKey{flows.Reason(last.State), last.Owner}
			} else if last.Drop != "" {
				key = dropKey{last.Drop, last.Owner}
			}
		})
		if len(out[key]) < mostLast {
			in, _ := t.Stages[0].Get("in_port")
			x := m.packet(datapath != "system")
			x.From = names.Port(in)
			out[key] = append(out[key], x)
		}
	}
	return out, nil
}

// megaflow is a line of `dpctl/dump-flows -m` that drops.
type megaflow struct {
	match string
	more  uint64
	ago   float64
}

// parseMegaflow reads a line; false for one that forwards.
func parseMegaflow(line string) (megaflow, bool) {
	line = strings.TrimSpace(line)
	match, rest, ok := strings.Cut(line, ", packets:")
	_, actions, acts := strings.Cut(rest, ", actions:")
	if actions, _, _ = strings.Cut(actions, ", dp-extra-info:"); !ok || !acts || actions != "drop" {
		return megaflow{}, false
	}
	if _, after, found := strings.Cut(match, ", "); found && strings.HasPrefix(match, "ufid:") {
		match = after
	}
	m := megaflow{match: match}
	for i, field := range strings.Split(rest, ", ") {
		name, value, _ := strings.Cut(field, ":")
		switch {
		case i == 0:
			m.more, _ = strconv.ParseUint(field, 10, 64) // digits, or there is nothing to tell
		case name == "used":
			m.ago, _ = strconv.ParseFloat(strings.TrimSuffix(value, "s"), 64) // "never": no other packet came
		}
	}
	return m, true
}

// packet tells the packet that the datapath flow was made for. exact is true where the datapath keeps it whole.
func (m megaflow) packet(exact bool) DroppedPacket {
	x := DroppedPacket{More: m.more, Ago: m.ago, Source: "any", Destination: "any", Protocol: "any"}
	address := func(into *string, section map[string]string, name string) {
		if v, ok := section[name]; ok {
			*into = masked(v, exact)
		}
	}
	if ether, ok := ovs.Section(m.match, "eth_type"); ok {
		x.Protocol = "ethertype " + ether
	}
	if arp := ovs.SectionFields(m.match, "arp"); arp != nil {
		x.Protocol = "arp"
		address(&x.Source, arp, "sip")
		address(&x.Destination, arp, "tip")
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		ip := ovs.SectionFields(m.match, family)
		if ip == nil {
			continue
		}
		x.Protocol = "any"
		address(&x.Source, ip, "src")
		address(&x.Destination, ip, "dst")
		proto, mask, isMasked := strings.Cut(ip["proto"], "/")
		if proto != "" && (exact || !isMasked || mask != "0") {
			x.Protocol = "protocol " + proto
		}
	}
	for _, l4 := range []string{"tcp", "udp", "sctp", "icmp", "icmpv6"} {
		ports := ovs.SectionFields(m.match, l4)
		if ports == nil {
			continue
		}
		x.Protocol = l4
		for name, into := range map[string]*uint16{"src": &x.SourcePort, "dst": &x.DestinationPort} {
			port, mask, isMasked := strings.Cut(ports[name], "/")
			n, err := strconv.ParseUint(port, 10, 16)
			if err == nil && (exact || !isMasked || mask == "0xffff") {
				*into = uint16(n)
			}
		}
	}
	return x
}

// masked tells an address with its mask: the address where it is kept whole, else the range, or "any".
func masked(v string, exact bool) string {
	a, mask, isMasked := strings.Cut(v, "/")
	addr, err := netip.ParseAddr(a)
	if err != nil || exact || !isMasked {
		return a
	}
	m, err := netip.ParseAddr(mask)
	if err != nil {
		return v
	}
	bits := 0
	for _, b := range m.AsSlice() {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	switch p := netip.PrefixFrom(addr, bits); {
	case bits == 0:
		return "any"
	case p.IsSingleIP():
		return a
	default:
		return p.Masked().String()
	}
}
