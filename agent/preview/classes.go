package preview

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// end is who sends or receives: a group of pods that policies cannot tell apart, a node, or the addresses of a range
// that nothing in the cluster has.
type end struct {
	id   int
	pods []*policy.Pod
	// shown are the pods that stand for the group: one, and one more, on another node if there is one.
	shown []*policy.Pod
	nodes []string // of the pods; of a node, itself
	node  bool
	// outside is a range, anywhere one that means all addresses which no other range has.
	outside  netip.Prefix
	inner    []netip.Prefix // ranges within it that are ends of their own
	anywhere bool
	address  netip.Addr   // of outside
	own      []netip.Addr // of a node
}

// addressOf is the address of a family that the end is judged by; not the zero Addr if it has one.
func (e *end) addressOf(v4 bool, other int) netip.Addr {
	list := e.own
	switch {
	case len(e.pods) > 0:
		list = e.shown[min(other, len(e.shown)-1)].Addresses
	case !e.node:
		list = []netip.Addr{e.address}
	}
	for _, a := range list {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// vocabulary is what policies speak of.
type vocabulary struct {
	keys, names map[string]bool
	ranges      map[netip.Prefix]bool
	lengths     map[[2]int]bool // bits of an address and of a range
}

func vocabularyOf(sides ...map[string]*policy.Policy) vocabulary {
	v := vocabulary{map[string]bool{}, map[string]bool{}, map[netip.Prefix]bool{}, map[[2]int]bool{}}
	selector := func(s policy.Selector) {
		for _, r := range s {
			v.keys[r.Key] = true
		}
	}
	for _, side := range sides {
		for _, p := range side {
			selector(p.Subject.Pods)
			for _, r := range slices.Concat(p.Ingress, p.Egress) {
				for _, x := range r.Peers {
					if x.Pods != nil {
						selector(x.Pods.Pods)
					}
					for _, c := range x.Ranges {
						v.ranges[c] = true
						v.lengths[[2]int{c.Addr().BitLen(), c.Bits()}] = true
					}
				}
				for _, x := range r.Ports {
					v.names[x.Name] = true
				}
			}
		}
	}
	return v
}

// group is the same text for pods that policies cannot tell apart.
func (v vocabulary) group(p *policy.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", p.Namespace)
	for label := range strings.SplitSeq(string(p.Labels), ",") {
		if key, _, _ := strings.Cut(label, "="); v.keys[key] {
			fmt.Fprintf(&b, "%s\n", label)
		}
	}
	for _, x := range p.Ports {
		if v.names[x.Name] {
			fmt.Fprintf(&b, "%s/%d/%d\n", x.Name, x.Protocol, x.Number)
		}
	}
	for _, a := range p.Addresses {
		fmt.Fprintf(&b, "%d:", a.BitLen())
		for _, l := range slices.SortedFunc(maps.Keys(v.lengths), func(x, y [2]int) int { return cmp.Or(x[0]-y[0], x[1]-y[1]) }) {
			if c, err := a.Prefix(l[1]); l[0] == a.BitLen() && err == nil && v.ranges[c] {
				fmt.Fprintf(&b, "%d,", l[1])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// add gives an end its number.
func (x *examination) add(e *end) { e.id, x.list = len(x.list), append(x.list, e) }

// ends lists the groups of pods and the nodes, and counts the pods that have no address yet.
func (x *examination) ends() (without int) {
	o, v := x.objects, vocabularyOf(x.before, x.after)
	nodeOf := nodeFinder(o.Nodes)
	groups := map[string]*end{}
	pods := slices.SortedFunc(slices.Values(o.Pods), func(a, b *policy.Pod) int { return cmp.Compare(a.Key(), b.Key()) })
	for _, p := range pods {
		if len(p.Addresses) == 0 {
			without++
			continue
		}
		g := v.group(p)
		e := groups[g]
		if e == nil {
			e = &end{}
			groups[g] = e
			x.add(e)
		}
		e.pods = append(e.pods, p)
		node := nodeOf(p.Addresses[0])
		switch {
		case len(e.shown) < 2:
			e.shown = append(e.shown, p)
		case len(e.nodes) == 1 && node != e.nodes[0]:
			e.shown[1] = p
		}
		if !slices.Contains(e.nodes, node) {
			e.nodes = append(e.nodes, node)
		}
	}
	for _, n := range o.Nodes {
		x.add(&end{node: true, nodes: []string{n.Name}, own: n.Addresses})
	}
	return without
}

// outsides lists the ranges that rules of the subjects mention, less what is inside the cluster, and the rest of
// the world.
func (x *examination) outsides(c comparison) {
	wide := map[netip.Prefix]bool{netip.PrefixFrom(netip.IPv4Unspecified(), 0): true, netip.PrefixFrom(netip.IPv6Unspecified(), 0): true}
	for _, s := range []*side{c.before, c.after} {
		for _, clause := range s.policy.Clauses.All() {
			if clause.Kind == flows.PeerRange {
				wide[clause.Range] = true
			}
		}
	}
	var taken []netip.Prefix
	host := func(a netip.Addr) { taken = append(taken, netip.PrefixFrom(a, a.BitLen())) }
	nodeOf := nodeFinder(x.objects.Nodes)
	for _, n := range x.objects.Nodes {
		taken = append(taken, n.PodCIDRs...)
		for _, a := range n.Addresses {
			host(a)
		}
	}
	for _, p := range x.objects.Pods {
		for _, a := range p.Addresses {
			if nodeOf(a) == "" {
				host(a)
			}
		}
	}
	list := slices.SortedFunc(maps.Keys(wide), func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	for i, r := range list {
		var inner []netip.Prefix
		for _, x := range list[i+1:] { // those within it come after it
			if !r.Contains(x.Addr()) {
				break
			}
			inner = append(inner, x)
		}
		if rest := policy.Subtract(r, slices.Concat(taken, inner)); len(rest) > 0 {
			// The last address: the first of all there are, 0.0.0.0, is none.
			x.add(&end{outside: r, inner: inner, anywhere: r.Bits() == 0, address: lastOf(rest[0])})
		}
	}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // of the length of an address
	return a
}

// nodeFinder finds the node whose podCIDR has an address; empty for none.
func nodeFinder(nodes []flows.Node) func(netip.Addr) string {
	by := map[netip.Prefix]string{}
	lengths := map[int]bool{}
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			by[c.Masked()] = n.Name
			lengths[c.Bits()] = true
		}
	}
	return func(a netip.Addr) string {
		for bits := range lengths {
			if c, err := a.Prefix(bits); err == nil && by[c] != "" {
				return by[c]
			}
		}
		return ""
	}
}
