package host

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

func testTable() NFTables {
	return NFTables{
		PodCIDRs:     prefixes("10.244.1.0/24", "2001:db8:244:1::/64"),
		NoMasquerade: prefixes("10.244.0.0/16", "10.244.7.0/24", "203.0.113.9/32", "2001:db8:244::/48", "198.18.0.0/16", "198.19.0.0/16"),
		GatewayLink:  "twill0", TunnelPort: 6081,
	}
}

// table is the present ruleset of a table in words, without handles.
func table(t *testing.T, name string) (all []string) {
	t.Helper()
	nft, err := knftables.New(knftables.InetFamily, name)
	must(t, err)
	objects, err := nft.ListAll(t.Context())
	if knftables.IsNotFound(err) {
		return []string{"none"}
	}
	must(t, err)
	for _, kind := range slices.Sorted(maps.Keys(objects)) {
		for _, name := range objects[kind] {
			all = append(all, kind+" "+name)
			if kind != "set" {
				continue
			}
			elements, err := nft.ListElements(t.Context(), kind, name)
			must(t, err)
			for _, e := range elements {
				all = append(all, fmt.Sprint(name, " ", e.Key))
			}
		}
	}
	rules, err := nft.ListRules(t.Context(), "")
	must(t, err)
	for _, r := range rules {
		all = append(all, fmt.Sprint(r.Chain, " ", *r.Comment))
	}
	return all
}

func TestTheTableIsMadeOnceAndThenSilent(t *testing.T) {
	newHost(t)
	n := testTable()
	if d := cmp.Diff([]string{"nftables table inet twill was missing, made"}, ensure(t, n)); d != "" {
		t.Errorf("the first Ensure (-want +got):\n%s", d)
	}
	if again := ensure(t, n); len(again) > 0 {
		t.Errorf("the second Ensure repaired %q, want silence", again)
	}
}

func TestWhenAllIsRightNothingIsWritten(t *testing.T) {
	newHost(t)
	n := testTable()
	ensure(t, n)
	kicks := watch(t)
	ensure(t, n)
	addBridge(t, "marker")
	if cause := <-kicks; !strings.Contains(cause, "marker") {
		t.Errorf("the kernel tells of a change: %s", cause)
	}
}

func TestTheTableIsRepairedWhateverIsTakenFromIt(t *testing.T) {
	newHost(t)
	n := testTable()
	ensure(t, n)
	whole := table(t, nftTable)
	own := knftables.Table{Family: knftables.InetFamily, Name: nftTable}
	handle := func(chain string) *int {
		nft, err := knftables.New(own.Family, own.Name)
		must(t, err)
		rules, err := nft.ListRules(t.Context(), chain)
		must(t, err)
		return rules[0].Handle
	}
	element := func(set, key string) *knftables.Element {
		return &knftables.Element{Family: own.Family, Table: own.Name, Set: set, Key: []string{key}}
	}
	chain := func(name string) *knftables.Chain {
		return &knftables.Chain{Family: own.Family, Table: own.Name, Name: name}
	}
	lost := func(name string) string {
		return "chain " + name + " of nftables table inet twill had not the rules it must have, table written anew"
	}
	for _, c := range []struct {
		damage string
		do     func(*knftables.Transaction)
		want   []string
	}{
		{"table deleted", func(tx *knftables.Transaction) { tx.Delete(&own) }, []string{"nftables table inet twill was missing, made"}},
		{"table emptied", func(tx *knftables.Transaction) { tx.Flush(&own) },
			[]string{lost("prerouting"), lost("output"), lost("input"), lost("forward"), lost("postrouting")}},
		{"chain deleted", func(tx *knftables.Transaction) {
			tx.Flush(chain("postrouting"))
			tx.Delete(chain("postrouting"))
		}, []string{lost("postrouting")}},
		{"rule deleted", func(tx *knftables.Transaction) {
			tx.Delete(&knftables.Rule{Family: own.Family, Table: own.Name, Chain: "forward", Handle: handle("forward")})
		}, []string{lost("forward")}},
		{"rule replaced", func(tx *knftables.Transaction) {
			tx.Replace(&knftables.Rule{Family: own.Family, Table: own.Name, Chain: "input", Handle: handle("input"), Rule: "accept"})
		}, []string{lost("input")}},
		{"rule added", func(tx *knftables.Transaction) {
			tx.Add(&knftables.Rule{Family: own.Family, Table: own.Name, Chain: "output", Rule: "drop"})
		}, []string{lost("output")}},
		{"foreign chain added", func(tx *knftables.Transaction) {
			tx.Add(chain("mine"))
			tx.Add(&knftables.Rule{Family: own.Family, Table: own.Name, Chain: "mine", Rule: "drop"})
		}, []string{"nftables table inet twill had a foreign chain mine, table written anew"}},
		{"element deleted", func(tx *knftables.Transaction) { tx.Delete(element("no-masquerade-ipv4", "203.0.113.9/32")) },
			[]string{"set no-masquerade-ipv4 of nftables table inet twill lacked 203.0.113.9/32, added"}},
		{"element added", func(tx *knftables.Transaction) { tx.Add(element("no-masquerade-ipv6", "2001:db8:9::/48")) },
			[]string{"set no-masquerade-ipv6 of nftables table inet twill had 2001:db8:9::/48 too many, removed"}},
		{"sets emptied", func(tx *knftables.Transaction) {
			tx.Flush(&knftables.Set{Family: own.Family, Table: own.Name, Name: "no-masquerade-ipv4"})
			tx.Flush(&knftables.Set{Family: own.Family, Table: own.Name, Name: "no-masquerade-ipv6"})
		}, []string{"set no-masquerade-ipv4 of nftables table inet twill lacked 10.244.0.0/16, 198.18.0.0/16, 198.19.0.0/16, 203.0.113.9/32, added",
			"set no-masquerade-ipv6 of nftables table inet twill lacked 2001:db8:244::/48, added"}},
		{"range element added", func(tx *knftables.Transaction) { tx.Add(element("no-masquerade-ipv4", "198.51.100.1-198.51.100.9")) }, nil},
	} {
		runNFT(t, c.do)
		repaired := ensure(t, n)
		if c.want == nil && len(repaired) != 1 {
			t.Errorf("%s: repaired %q, want one sentence", c.damage, repaired)
		}
		if d := cmp.Diff(c.want, repaired); c.want != nil && d != "" {
			t.Errorf("%s (-want +got):\n%s", c.damage, d)
		}
		if d := cmp.Diff(whole, table(t, nftTable)); d != "" {
			t.Errorf("%s: the table after the repair (-want +got):\n%s", c.damage, d)
		}
		if again := ensure(t, n); len(again) > 0 {
			t.Errorf("%s: the second Ensure repaired %q, want silence", c.damage, again)
		}
	}
}

func TestAChangedWishChangesTheTable(t *testing.T) {
	newHost(t)
	n := testTable()
	ensure(t, n)
	for what, change := range map[string]func(){
		"port": func() { n.TunnelPort = 4789 }, "no tunnel": func() { n.TunnelPort = 0 },
		"link": func() { n.GatewayLink = "twill1" }, "podCIDR": func() { n.PodCIDRs = n.PodCIDRs[:1] },
		"ranges": func() { n.NoMasquerade = append(n.NoMasquerade, prefixes("192.0.2.0/24")...) },
	} {
		change()
		if len(ensure(t, n)) == 0 {
			t.Errorf("another %s: Ensure did nothing", what)
		}
		if again := ensure(t, n); len(again) > 0 {
			t.Errorf("another %s: the second Ensure repaired %q, want silence", what, again)
		}
	}
}

func TestForeignTablesAreNeverTouched(t *testing.T) {
	newHost(t)
	n := testTable()
	runNFT(t, func(tx *knftables.Transaction) {
		tx.Add(&knftables.Table{Family: knftables.InetFamily, Name: "other"})
		tx.Add(&knftables.Chain{Family: knftables.InetFamily, Table: "other", Name: "postrouting"})
		tx.Add(&knftables.Rule{Family: knftables.InetFamily, Table: "other", Chain: "postrouting", Rule: "counter accept", Comment: knftables.PtrTo("theirs")})
	})
	before := table(t, "other")
	ensure(t, n)
	must(t, n.Remove(t.Context()))
	must(t, n.Remove(t.Context()))
	if d := cmp.Diff(before, table(t, "other")); d != "" {
		t.Errorf("the foreign table (-before +after):\n%s", d)
	}
	if got := table(t, nftTable); !slices.Equal(got, []string{"none"}) {
		t.Errorf("after Remove the table holds %q", got)
	}
}
