package host

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// nftTable is the name of our table of family inet, the only one that is ever touched.
const nftTable = "twill"

// injected counts the tunnel packets that pods tried to send themselves.
const injected = "injected-tunnel-packets"

// NFTables is what the host filter has to do for the pod network:
//
//	postrouting  what pods send out of the pod network leaves with an address of the node; answers to what the
//	             host has translated to a pod of the node, such as a hostPort, come back to it
//	prerouting,  tunnel packets between nodes are kept out of connection tracking: one entry for each
//	output       source port would fill the table, and nothing ever asks for them
//	prerouting   nothing comes in by the host end of a pod, see podGroup
//	input,       a tunnel packet that comes from a pod is dropped and counted: it would carry whatever
//	forward      source its sender likes into the network of another pod
type NFTables struct {
	// PodCIDRs are the ranges of this node, masqueraded when they leave the pod network.
	PodCIDRs []netip.Prefix
	// NoMasquerade are destinations that see the address of the pod: cluster CIDRs, the podCIDRs of
	// peers, and what the operator configured. They may overlap.
	NoMasquerade []netip.Prefix
	// Cluster are the ranges of all pods and the addresses of the other nodes: answers to those do not come by the host of
	// themselves. They may overlap.
	Cluster []netip.Prefix
	// GatewayLink is the host's end of the pod network.
	GatewayLink string
	// TunnelPort is the UDP port of the tunnel; 0 leaves out all rules about it.
	TunnelPort uint16
	// Services are what the host does for them; nil where another proxy cares for them.
	Services *NFTServices
}

// nftRule is a rule whose comment ends in a hash of its text: nft shows rules in its own words, so
// comments are what is compared.
type nftRule struct{ chain, text, why string }

func (r nftRule) comment() string {
	h := fnv.New32a()
	h.Write([]byte(r.chain + " " + r.text))
	return fmt.Sprintf("%s [%08x]", r.why, h.Sum32())
}

type nftChain struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
}

func nftChains() []nftChain {
	return []nftChain{
		{"prerouting", knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority},
		{"output", knftables.FilterType, knftables.OutputHook, knftables.RawPriority},
		{"input", knftables.FilterType, knftables.InputHook, knftables.FilterPriority},
		{"forward", knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority},
		{"postrouting", knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority},
		{"nodeport-prerouting", knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority},
		{"nodeport-output", knftables.NATType, knftables.OutputHook, knftables.DNATPriority},
	}
}

// nftFamily is what differs between IPv4 and IPv6 in the words of nft.
type nftFamily struct {
	set, cluster, addressType, protocol, multicast string
}

func nftFamilyOf(a netip.Addr) nftFamily {
	if a.Is4() {
		return nftFamily{"no-masquerade-ipv4", "cluster-ipv4", "ipv4_addr", "ip", "224.0.0.0/4"}
	}
	return nftFamily{"no-masquerade-ipv6", "cluster-ipv6", "ipv6_addr", "ip6", "ff00::/8"}
}

// TranslatedIPv4 and TranslatedIPv6 are whom a pod sees where another pod, or another node, reaches it by a port of the
// host, such as a hostPort: its answer has to come by the host, which puts the address back, not straight by the
// bridge. They are no node's and no pod's, so that policies do not take the client for either. One is link-local (RFC
// 3927), the other unique local (RFC 4193); they never leave the node.
const (
	TranslatedIPv4 = "169.254.77.3"
	TranslatedIPv6 = "fd77:7769:6c6c::3"
)

// kubeProxyMark is on what kube-proxy gives the node's own address to (its masqueradeBit, 14 by default): that answers
// come by the host then is its business.
const kubeProxyMark = "0x4000"

func (n NFTables) rules() (all []nftRule) {
	all = append(all, nftRule{"prerouting", fmt.Sprintf("iifgroup { %d, %d } drop", podGroup, leavingGroup),
		"what a pod sends is for the bridge alone"})
	for _, cidr := range n.PodCIDRs {
		f, to, other := nftFamilyOf(cidr.Addr()), TranslatedIPv4, ""
		if cidr.Addr().Is6() {
			to = TranslatedIPv6
		}
		if n.Services == nil {
			other = fmt.Sprintf("meta mark & %s == 0 ", kubeProxyMark)
		}
		all = append(all, nftRule{"postrouting", fmt.Sprintf("%s daddr %s ct status dnat %[1]s saddr @%[3]s %[4]ssnat %[1]s to %[5]s", f.protocol, cidr.Masked(), f.cluster, other, to),
			"who reaches a pod by a port of the host gets answers by the host"})
		all = append(all, nftRule{"postrouting", fmt.Sprintf("%s saddr %s oifname != %q %s daddr != @%s %s daddr != %s masquerade fully-random",
			f.protocol, cidr.Masked(), n.GatewayLink, f.protocol, f.set, f.protocol, f.multicast),
			"pods that leave the pod network get an address of the node"})
	}
	if n.Services != nil {
		all = append(all, n.Services.rules(n.GatewayLink)...)
	}
	if n.TunnelPort == 0 {
		return all
	}
	for _, chain := range []string{"prerouting", "output"} {
		all = append(all, nftRule{chain, fmt.Sprintf("udp dport %d notrack", n.TunnelPort), "tunnel packets are not tracked"})
	}
	for _, chain := range []string{"input", "forward"} {
		all = append(all, nftRule{chain, fmt.Sprintf("iifname %q udp dport %d counter name %s drop", n.GatewayLink, n.TunnelPort, injected),
			"a pod must not send tunnel packets"})
	}
	return all
}

// sets are the elements of each set, of both families, without overlaps.
func (n NFTables) sets() map[string][]string {
	sets := n.Services.sets()
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		sets[nftFamilyOf(a).set], sets[nftFamilyOf(a).cluster] = nil, nil
	}
	for _, p := range outermost(n.NoMasquerade) {
		name := nftFamilyOf(p.Addr()).set
		sets[name] = append(sets[name], p.String())
	}
	for _, p := range outermost(n.Cluster) {
		name := nftFamilyOf(p.Addr()).cluster
		sets[name] = append(sets[name], p.String())
	}
	return sets
}

// outermost leaves out what lies inside another range: nft refuses overlapping elements.
func outermost(ranges []netip.Prefix) (kept []netip.Prefix) {
	ordered := slices.Clone(ranges)
	for i := range ordered {
		ordered[i] = ordered[i].Masked()
	}
	slices.SortFunc(ordered, netip.Prefix.Compare) // by address, then the widest first
	for _, p := range ordered {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// Ensure makes the table what it must be, in one transaction, and says what it had to repair. It
// reads first and does not write when all is right. Elements alone are repaired in their set;
// anything else replaces the whole table, which starts its counter anew.
//
// Reading runs nft half a dozen times, some 25 ms in all: let Watch say when it is worth it. It does not
// see a dormant flag on the table or another policy on a chain; nft shows neither through knftables.
func (n NFTables) Ensure(ctx context.Context) (repaired []string, err error) {
	nft, err := nftables()
	if err != nil {
		return nil, err
	}
	d := n.compare(ctx, nft)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	tx := nft.NewTransaction()
	switch {
	case len(d.table) > 0:
		n.build(tx)
	case len(d.elements) > 0:
		for _, set := range slices.Sorted(maps.Keys(d.sets)) {
			if n.Services.maps()[set] != "" {
				tx.Flush(&knftables.Map{Name: set})
			} else {
				tx.Flush(&knftables.Set{Name: set})
			}
			addElements(tx, set, d.sets[set])
		}
	default:
		return nil, nil
	}
	repaired = append(d.table, d.elements...)
	if err := nft.Run(ctx, tx); err != nil {
		return nil, fmt.Errorf("write nftables table inet %s (%s): %w", nftTable, repaired[0], err)
	}
	return repaired, nil
}

// Remove deletes the table. A missing one is no error.
func (n NFTables) Remove(ctx context.Context) error {
	nft, err := nftables()
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("delete nftables table inet %s: %w", nftTable, err)
	}
	return nil
}

// Injected is the number of tunnel packets from pods dropped so far. It starts anew with the table.
func (n NFTables) Injected(ctx context.Context) (uint64, error) {
	nft, err := nftables()
	if err != nil {
		return 0, err
	}
	counters, err := nft.ListCounters(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the counters of nftables table inet %s: %w", nftTable, err)
	}
	for _, c := range counters {
		if c.Name == injected && c.Packets != nil {
			return *c.Packets, nil
		}
	}
	return 0, nil
}

func nftables() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, nftTable)
	if err != nil {
		return nil, fmt.Errorf("nftables cannot be used, see that nft is installed, in PATH, and run as root on a kernel with nf_tables: %w", err)
	}
	return nft, nil
}

// build writes the table anew.
func (n NFTables) build(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{}) // so that there is one to delete
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("pod network of Twill, kept by its agent")})
	tx.Add(&knftables.Counter{Name: injected})
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		f := nftFamilyOf(a)
		for _, name := range []string{f.set, f.cluster} {
			tx.Add(&knftables.Set{Name: name, Type: f.addressType, Flags: []knftables.SetFlag{knftables.IntervalFlag}})
		}
	}
	for _, set := range n.Services.declarations() {
		tx.Add(set)
	}
	for name, types := range n.Services.maps() {
		tx.Add(&knftables.Map{Name: name, Type: types})
	}
	for set, elements := range n.sets() {
		addElements(tx, set, elements)
	}
	for _, c := range nftChains() {
		tx.Add(&knftables.Chain{Name: c.name, Type: &c.kind, Hook: &c.hook, Priority: &c.priority})
	}
	for _, r := range n.rules() {
		tx.Add(&knftables.Rule{Chain: r.chain, Rule: r.text, Comment: knftables.PtrTo(r.comment())})
	}
}

func addElements(tx *knftables.Transaction, set string, elements []string) {
	for _, e := range elements {
		key, value, isMap := strings.Cut(e, " : ")
		if isMap {
			tx.Add(&knftables.Element{Map: set, Key: strings.Split(key, " . "), Value: []string{value}})
			continue
		}
		tx.Add(&knftables.Element{Set: set, Key: strings.Split(key, " . ")})
	}
}

// nftDrift is how the table differs from what it must be.
type nftDrift struct {
	table    []string            // sentences that call for a new table
	elements []string            // sentences about elements only
	sets     map[string][]string // the sets that those are about, with what they must hold
}

// compare reads the table back. What cannot be read counts as wrong: writing it anew is the repair.
func (n NFTables) compare(ctx context.Context, nft knftables.Interface) nftDrift {
	d := nftDrift{sets: map[string][]string{}}
	list, err := nft.ListRules(ctx, "")
	switch {
	case knftables.IsNotFound(err):
		d.table = append(d.table, "nftables table inet "+nftTable+" was missing, made")
		return d
	case err != nil:
		d.table = append(d.table, fmt.Sprintf("nftables table inet %s could not be read, written anew: %v", nftTable, err))
		return d
	}
	d.table = n.compareRules(list)
	sets := n.sets()
	for _, set := range slices.Sorted(maps.Keys(sets)) {
		kind := "set"
		if n.Services.maps()[set] != "" {
			kind = "map"
		}
		list, err := nft.ListElements(ctx, kind, set)
		if err != nil {
			d.table = append(d.table, fmt.Sprintf("set %s of nftables table inet %s could not be read, table written anew: %v", set, nftTable, err))
			continue
		}
		if wrong := compareElements(sets[set], list); wrong != "" {
			d.elements = append(d.elements, fmt.Sprintf("set %s of nftables table inet %s %s", set, nftTable, wrong))
			d.sets[set] = sets[set]
		}
	}
	return d
}

// compareRules compares by chain and in order. A chain that is gone shows as one without its rules:
// it cannot go before they do.
func (n NFTables) compareRules(list []*knftables.Rule) (wrong []string) {
	has, want := map[string][]string{}, map[string][]string{}
	for _, r := range list {
		comment := ""
		if r.Comment != nil {
			comment = *r.Comment
		}
		has[r.Chain] = append(has[r.Chain], comment)
	}
	for _, r := range n.rules() {
		want[r.chain] = append(want[r.chain], r.comment())
	}
	for _, c := range nftChains() {
		if !slices.Equal(has[c.name], want[c.name]) {
			wrong = append(wrong, fmt.Sprintf("chain %s of nftables table inet %s had not the rules it must have, table written anew", c.name, nftTable))
		}
		delete(has, c.name)
	}
	for _, name := range slices.Sorted(maps.Keys(has)) {
		wrong = append(wrong, fmt.Sprintf("nftables table inet %s had a foreign chain %s, table written anew", nftTable, name))
	}
	return wrong
}

// compareElements says what a set lacks and what it has too many, in one sentence; empty when nothing.
func compareElements(want []string, list []*knftables.Element) string {
	has := map[string]bool{}
	for _, e := range list {
		has[elementText(e)] = true
	}
	var lacks []string
	for _, text := range want {
		if has[text] {
			delete(has, text)
		} else {
			lacks = append(lacks, text)
		}
	}
	var words []string
	if len(lacks) > 0 {
		words = append(words, "lacked "+strings.Join(lacks, ", ")+", added")
	}
	if len(has) > 0 {
		words = append(words, "had "+strings.Join(slices.Sorted(maps.Keys(has)), ", ")+" too many, removed")
	}
	return strings.Join(words, " and ")
}

// elementText writes an element as netip writes a range; nft shows that of one address as an address.
func elementText(e *knftables.Element) string {
	text := strings.Join(protocolNamed(e.Key), " . ")
	if len(e.Value) > 0 {
		return text + " : " + e.Value[0]
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.String()
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return single(a).String()
	}
	return text
}
