package flows_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

func TestPacketsMoveOnlyForward(t *testing.T) {
	for _, f := range all(t) {
		to, ok := f.Actions.Get("goto_table")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(to)
		if err != nil || n <= int(f.Table) {
			t.Errorf("%s goes from table %d to %q", f, f.Table, to)
		}
		if last := f.Actions[len(f.Actions)-1]; last.Verb != "goto_table" {
			t.Errorf("%s: goto_table is not the last action, so what follows it would happen first", f)
		}
	}
}

// TestEveryTableEndsInACountedDrop allows exceptions: what table node and those of policies have no opinion
// about goes on.
func TestEveryTableEndsInACountedDrop(t *testing.T) {
	goOn := []flows.Table{
		flows.ToNode, flows.Isolate, flows.Sender, flows.EgressAdmin, flows.EgressPolicy, flows.IngressAdmin, flows.IngressPolicy, flows.Commit,
	}
	for _, s := range scenarios(t) {
		used, ends := map[flows.Table]bool{}, map[flows.Table]string{}
		for _, f := range desired(t, s.world).Flows() {
			used[f.Table] = true
			if to, ok := f.Actions.Get("goto_table"); ok {
				n, err := strconv.ParseUint(to, 10, 8)
				if err != nil {
					t.Fatal(err)
				}
				used[flows.Table(n)] = true
			}
			if f.Priority == 0 && len(f.Match) == 0 {
				ends[f.Table] = string(f.Drop)
			}
			if (len(f.Actions) == 0) != (f.Drop != "") {
				t.Errorf("%s: reason %q", f, f.Drop)
			}
			if f.Drop != "" && f.Drop.Sentence() == string(f.Drop) {
				t.Errorf("%s: reason %s has no sentence", f, f.Drop)
			}
			if f.Owner == "" || f.Cookie>>32 == 0 || f.Cookie&flows.CookieMask != f.Owner.CookiePrefix() {
				t.Errorf("%s: owner %q", f, f.Owner)
			}
		}
		want := len(flows.Tables())
		if s.world.Services == nil {
			want = 15
		}
		if len(used) != want {
			t.Errorf("%s: %d tables are used, want %d", s.name, len(used), want)
		}
		for table := range used {
			reason, ok := ends[table]
			if !ok || (reason == "") != (slices.Contains(passing(), table) || slices.Contains(goOn, table)) {
				t.Errorf("%s: table %s ends with reason %q, present %v", s.name, table, reason, ok)
			}
		}
	}
}

// passing are the tables that sort out exceptions, and through which everything else passes; what nobody serves
// is not dropped but handed to the host.
func passing() []flows.Table {
	return []flows.Table{flows.ToNode, flows.Return, flows.Returned, flows.Conntrack, flows.Direct, flows.Service, flows.Sticky, flows.Hide, flows.Reply}
}

func TestTableNamesAreUniqueAndInPipelineOrder(t *testing.T) {
	names, last := map[string]bool{}, -1
	for _, table := range flows.Tables() {
		name := table.String()
		// What ovs-ofctl --names accepts without quotes, within OFP_MAX_TABLE_NAME_LEN (32 with its NUL).
		if len(name) > 31 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_-") != "" || names[name] {
			t.Errorf("table %d is named %q", table, name)
		}
		if int(table) <= last || table > 253 {
			t.Errorf("table %s has number %d after %d", name, table, last)
		}
		names[name], last = true, int(table)
	}
}

// TestTheNumberOfFlowsIsASumOverPodsAndNodes states what docs say a bridge costs. The constant holds
// what every bridge has and what this node's own Node adds.
func TestTheNumberOfFlowsIsASumOverPodsAndNodes(t *testing.T) {
	for _, c := range []struct {
		name                  string
		v4, v6                bool
		pod, peer, everything int
	}{
		{"IPv4", true, false, 7, 3, 77},
		{"IPv6", false, true, 6, 3, 77},
		{"dual stack", true, true, 10, 5, 83},
	} {
		count := func(pods, peers int) int {
			return desired(t, sized(c.v4, c.v6, pods, peers)).Len()
		}
		if got := count(0, 0); got != c.everything {
			t.Errorf("%s: %d flows without pods and peers, docs say %d", c.name, got, c.everything)
		}
		for _, n := range []struct{ pods, peers int }{{1, 0}, {0, 1}, {1, 1}, {30, 0}, {0, 30}, {30, 30}, {110, 200}} {
			if got, want := count(n.pods, n.peers), c.pod*n.pods+c.peer*n.peers+c.everything; got != want {
				t.Errorf("%s, %d pods and %d peers: %d flows, docs say %d·pods + %d·peers + %d = %d",
					c.name, n.pods, n.peers, got, c.pod, c.peer, c.everything, want)
			}
		}
	}
}

func TestAPodWithSeveralAddressesOfOneFamilyAsksForNoFlowTwice(t *testing.T) {
	w := sized(true, true, 1, 0)
	o := flows.PodOwner("default", "web-0", "eth0")
	w.Pods[o][0].Addresses = append(w.Pods[o][0].Addresses, netip.MustParseAddr("198.18.1.99"), netip.MustParseAddr("2001:db8:1:1::99"))
	fs, err := flows.Compile(w, o)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[flows.Key]bool{}
	for _, f := range fs {
		if seen[f.Key()] {
			t.Errorf("twice: %s", f)
		}
		seen[f.Key()] = true
	}
	if len(fs) != 16 {
		t.Errorf("%d flows, want 4 for the pod, 4 for each IPv4 and 2 for each IPv6 address", len(fs))
	}
}

// sized is a World of a number of pods and peers, each with one address of each family.
func sized(v4, v6 bool, pods, peers int) *flows.World {
	w := &flows.World{
		MTU: 1450, Peers: map[string]flows.Node{}, Pods: map[flows.Owner][]flows.Attachment{},
		Tunnel: flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7},
	}
	node := func(name string, i int) flows.Node {
		n := flows.Node{Name: name}
		if v4 {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", i)))
			n.Addresses = append(n.Addresses, netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", i)))
		}
		if v6 {
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("2001:db8:1:%x::/64", i)))
			n.Addresses = append(n.Addresses, netip.MustParseAddr(fmt.Sprintf("2001:db8:f::%x", i)))
		}
		return n
	}
	w.Node = node("alpha", 1)
	w.Tunnel.Local = w.Node.Addresses[0]
	if v4 {
		w.ClusterCIDRs = append(w.ClusterCIDRs, netip.MustParsePrefix("198.18.0.0/16"))
	}
	if v6 {
		w.ClusterCIDRs = append(w.ClusterCIDRs, netip.MustParsePrefix("2001:db8:1::/48"))
	}
	for i := range peers {
		name := fmt.Sprint("node-", i)
		w.Peers[name] = node(name, i+2)
	}
	for i := range pods {
		a := flows.Attachment{OFPort: uint32(i + 1), Namespace: "default", Pod: fmt.Sprint("web-", i), IfName: "eth0", MAC: []byte{10, 88, 0, 0, 0, byte(i)}, MTU: 1450}
		if v4 {
			a.Addresses = append(a.Addresses, netip.MustParseAddr(fmt.Sprintf("198.18.1.%d", i+2)))
		}
		if v6 {
			a.Addresses = append(a.Addresses, netip.MustParseAddr(fmt.Sprintf("2001:db8:1:1::%x", i+2)))
		}
		w.Pods[a.Owner()] = []flows.Attachment{a}
	}
	return w
}
