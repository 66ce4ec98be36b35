package flows

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Refusal is one range or address that a Node claims and that an elder Node holds already.
type Refusal struct {
	// Node claims What in vain, Holder keeps it.
	Node, Holder string
	// What is the refused part of the Node: "podCIDR 10.244.1.0/24" or "address 198.51.100.1".
	What string
	// Reason is one sentence that names both Nodes and the remedy.
	Reason string
}

// Admit settles what several Nodes claim at once. Of two Nodes whose podCIDRs overlap (equal or
// nested), or that share an InternalIP, the elder (by Created, then Name) keeps it. The younger one
// loses just that podCIDR or address and stays admitted with what is left, be it nothing.
//
// The verdict depends on the set of Nodes alone, not on their order or on former verdicts: every
// node of a cluster decides alike, and a claim heals as soon as its holder is gone. A claim that was
// refused blocks nobody. Names are unique in a cluster; should two Nodes share one all the same, the
// elder has it.
//
// The cost is that of sorting the claims, plus one step per bit of prefix length for those that do
// overlap. refused is sorted by Node, then What.
func Admit(nodes []Node) (admitted map[string]Node, refused []Refusal) {
	byAge := slices.SortedFunc(slices.Values(nodes), elder)
	admitted = make(map[string]Node, len(nodes))
	var ranges []claim
	holders := make(map[netip.Addr]string, len(nodes))
	for rank, n := range byAge {
		if _, taken := admitted[n.Name]; taken {
			refused = append(refused, refuse(n.Name, n.Name, "name "+n.Name,
				"Two Nodes are named %[1]s; the elder one is used. Remove the other.", n.Name))
			continue
		}
		var addresses []netip.Addr
		for _, a := range n.Addresses {
			switch holder, taken := holders[a]; {
			case !taken:
				holders[a] = n.Name
				addresses = append(addresses, a)
			case holder != n.Name:
				refused = append(refused, refuse(n.Name, holder, "address "+a.String(),
					"Nodes %[1]s and %[2]s both have the InternalIP %[3]s, and %[2]s is the elder and keeps it: "+
						"give one of them another address (kubelet --node-ip), or delete Node %[2]s if that machine is gone.", n.Name, holder, a))
			}
		}
		for _, p := range n.PodCIDRs {
			if p.IsValid() {
				ranges = append(ranges, claim{p.Masked(), n.Name, rank})
			}
		}
		n.Addresses = addresses
		admitted[n.Name] = n
	}

	granted, overlaps := settle(ranges)
	for name, n := range admitted {
		// In the order of the object, which says what the Node's primary family is.
		var held []netip.Prefix
		for _, p := range n.PodCIDRs {
			if p.IsValid() && granted[p.Masked()] == name && !slices.Contains(held, p.Masked()) {
				held = append(held, p.Masked())
			}
		}
		n.PodCIDRs = held
		admitted[name] = n
	}
	refused = append(refused, overlaps...)
	slices.SortFunc(refused, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.What, b.What), cmp.Compare(a.Holder, b.Holder))
	})
	return admitted, refused
}

// elder orders Nodes by age. The name decides between Nodes of the same second (the resolution of
// creationTimestamp), the UID between incarnations.
func elder(a, b Node) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
}

// claim is one podCIDR of the Node that is rank-th by age.
type claim struct {
	prefix netip.Prefix
	node   string
	rank   int
}

// settle grants each range to the eldest that claims it. Two prefixes are either disjoint or nested;
// sorted by address, then by length, all that overlap follow the widest of them in one run, and only
// within such a run is there anything to decide.
func settle(claims []claim) (granted map[netip.Prefix]string, refused []Refusal) {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	granted = make(map[netip.Prefix]string, len(claims))
	for len(claims) > 0 {
		widest, run := claims[0].prefix, 1
		for run < len(claims) && widest.Overlaps(claims[run].prefix) {
			run++
		}
		if run == 1 {
			granted[widest] = claims[0].node
		} else {
			refused = append(refused, contest(claims[:run], widest.Bits(), granted)...)
		}
		claims = claims[run:]
	}
	return granted, refused
}

// contest decides one run of overlapping claims, eldest first. No prefix of it is shorter than bits.
func contest(run []claim, bits int, granted map[netip.Prefix]string) (refused []Refusal) {
	slices.SortFunc(run, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	// within names, for each prefix, the eldest holder of it or of a part of it.
	within := make(map[netip.Prefix]claim)
	for _, c := range run {
		holder, taken := within[c.prefix]
		for p := c.prefix; !taken && p.Bits() > bits; {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			if _, whole := granted[p]; whole {
				holder, taken = within[p], true
			}
		}
		if !taken {
			granted[c.prefix] = c.node
			for b := c.prefix.Bits(); b >= bits; b-- {
				p := netip.PrefixFrom(c.prefix.Addr(), b).Masked()
				if _, elder := within[p]; !elder {
					within[p] = c
				}
			}
			continue
		}
		if holder.prefix == c.prefix && holder.node == c.node {
			continue // the same range twice in one Node
		}
		refused = append(refused, refuse(c.node, holder.node, "podCIDR "+c.prefix.String(),
			"podCIDR %[3]s of Node %[1]s overlaps podCIDR %[4]s of Node %[2]s, which is the elder and keeps it: delete Node %[2]s "+
				"if that machine is gone, or delete Node %[1]s and let its kubelet register it anew, for another podCIDR.",
			c.node, holder.node, c.prefix, holder.prefix))
	}
	return refused
}

func refuse(node, holder, what, format string, args ...any) Refusal {
	return Refusal{Node: node, Holder: holder, What: what, Reason: fmt.Sprintf(format, args...)}
}
