package packets

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// nodeObject is a Node as the API server would have it.
func nodeObject(t *testing.T, name, created string, cidrs, addresses []string) []lab.Object {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Node\nmetadata:\n  name: %s\n  uid: uid-of-%s\n  creationTimestamp: %q\nspec:\n  podCIDRs: [%s]\nstatus:\n  addresses:\n",
		name, name, created, strings.Join(cidrs, ", "))
	for _, a := range addresses {
		fmt.Fprintf(&b, "  - {type: InternalIP, address: %q}\n", a)
	}
	objects, err := lab.ParseManifests([]byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func apply(t *testing.T, l *lab.Lab, objects []lab.Object) {
	t.Helper()
	if _, err := l.Apply(objects); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, l *lab.Lab, objects []lab.Object) {
	t.Helper()
	if _, err := l.Delete(objects); err != nil {
		t.Fatal(err)
	}
}

// problem waits until a node's status says something, or no longer does.
func problem(t *testing.T, l *lab.Lab, node, text string, there bool) {
	t.Helper()
	eventually(t, 5*time.Second, fmt.Sprintf("status of %s mentions %q: %t", node, text, there), func() string {
		all := strings.Join(statusOf(t, l, node).Problems, "\n")
		if strings.Contains(all, text) != there {
			return "it says: " + all
		}
		return ""
	})
}

func TestNodesAreFollowedAsTheyComeAndChangeAndGo(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	a := addPod(t, l, "a@node-1")
	b := addPod(t, l, "b@node-2")
	mustPing(t, l, a, b)
	before := statusOf(t, l, "node-1").Flows
	ports := labtest.OnNode(t, l, "node-1", "ovs-vsctl", "list-ports", "br-twill")

	// One that exists only as an object: flows for it, and no port.
	ghost := nodeObject(t, "ghost", "2026-01-03T00:00:00Z", []string{"198.18.50.0/24", `"2001:db8:42:50::/64"`}, []string{"198.51.100.50", "2001:db8:100::50"})
	apply(t, l, ghost)
	eventually(t, 5*time.Second, "flows for the new node", func() string {
		if n := statusOf(t, l, "node-1").Flows - before; n != 5 { // to come in, two podCIDRs, two addresses
			return fmt.Sprintf("%d flows more, want 5", n)
		}
		return ""
	})
	if now := labtest.OnNode(t, l, "node-1", "ovs-vsctl", "list-ports", "br-twill"); now != ports {
		t.Errorf("ports before\n%s\nand after\n%s", ports, now)
	}
	remove(t, l, ghost)
	eventually(t, 5*time.Second, "the flows go with the node", func() string {
		if n := statusOf(t, l, "node-1").Flows; n != before {
			return fmt.Sprintf("%d flows, want %d", n, before)
		}
		return ""
	})

	// Another address: packets go there from the next one on.
	n2 := labtest.Node(t, l, "node-2")
	cidrs := []string{n2.PodCIDRs()[0].String(), `"` + n2.PodCIDRs()[1].String() + `"`}
	labtest.OnNode(t, l, "node-2", "ip", "address", "del", n2.Addresses()[0].String()+"/24", "dev", n2.Interface())
	labtest.OnNode(t, l, "node-2", "ip", "address", "add", "198.51.100.222/24", "dev", n2.Interface())
	apply(t, l, nodeObject(t, "node-2", "2026-01-02T00:00:00Z", cidrs, []string{"198.51.100.222", n2.Addresses()[1].String()}))
	eventually(t, 10*time.Second, "pods reach each other by the new address", func() string {
		return pings(t, l, a, labtest.Of("IPv4", b.Addresses)) + pings(t, l, b, labtest.Of("IPv4", a.Addresses))
	})
	if got := labtest.OnNode(t, l, "node-1", "twill", "flows", "--node", "node-2", "--raw"); !strings.Contains(got, "198.51.100.222") || strings.Contains(got, n2.Addresses()[0].String()+"-") {
		t.Errorf("flows of node-1 toward node-2:\n%s", got)
	}

	// Gone, and back under the same name.
	gone := nodeObject(t, "node-2", "2026-01-02T00:00:00Z", cidrs, []string{"198.51.100.222", n2.Addresses()[1].String()})
	remove(t, l, gone)
	eventually(t, 5*time.Second, "the node is gone", func() string {
		if pings(t, l, a, labtest.Of("IPv4", b.Addresses)) == "" {
			return "its pods still answer"
		}
		return ""
	})
	apply(t, l, nodeObject(t, "node-2", "2026-01-09T00:00:00Z", cidrs, []string{"198.51.100.222", n2.Addresses()[1].String()}))
	eventually(t, 10*time.Second, "the node is back", func() string {
		return pings(t, l, a, labtest.Of("IPv4", b.Addresses))
	})
}

func TestDuplicateClaimsAreRefusedByNameAndHeal(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	a, b := addPod(t, l, "a@node-1"), addPod(t, l, "b@node-2")
	n2 := labtest.Node(t, l, "node-2")
	for _, c := range []struct {
		what, says       string
		cidrs, addresses []string
	}{
		{"a podCIDR twice", "podCIDR " + n2.PodCIDRs()[0].String() + " of Node thief overlaps", []string{n2.PodCIDRs()[0].String()}, []string{"198.51.100.66"}},
		{"a part of a podCIDR", "podCIDR 198.18.2.128/25 of Node thief overlaps", []string{"198.18.2.128/25"}, []string{"198.51.100.66"}},
		{"a tunnel address twice", "both have the InternalIP " + n2.Addresses()[0].String(), []string{"198.18.66.0/24"}, []string{n2.Addresses()[0].String()}},
	} {
		thief := nodeObject(t, "thief", "2036-01-01T00:00:00Z", c.cidrs, c.addresses)
		apply(t, l, thief)
		problem(t, l, "node-1", c.says, true)
		if got := metric(t, l, "node-1", "twill_refused_claims", ""); got != 1 {
			t.Errorf("%s: twill_refused_claims is %v, want 1", c.what, got)
		}
		if log := logOf(t, l, "node-1", 0); !strings.Contains(log, c.says) {
			t.Errorf("%s: the log does not name it", c.what)
		}
		mustPing(t, l, a, b)
		remove(t, l, thief)
		problem(t, l, "node-1", c.says, false)
		if got := metric(t, l, "node-1", "twill_refused_claims", ""); got != 0 {
			t.Errorf("%s: twill_refused_claims is %v after it healed", c.what, got)
		}
		mustPing(t, l, a, b)
	}
}

func TestBrokenManifestsKeepTheLastGoodState(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	a, b := addPod(t, l, "a@node-1"), addPod(t, l, "b@node-2")
	mustPing(t, l, a, b)
	file := lab.Dir(l.Name) + "/manifests/node_node-2.yaml"
	good := labtest.OnNode(t, l, "node-1", "cat", file)
	labtest.OnNode(t, l, "node-1", "bash", "-c", "printf 'apiVersion: v1\\nkind: Node\\nmetadata: {name: node-2\\n' > "+file)
	problem(t, l, "node-1", "node_node-2.yaml", true)
	mustPing(t, l, a, b)
	labtest.OnNode(t, l, "node-1", "bash", "-c", "cat > "+file+" <<'END'\n"+good+"END")
	problem(t, l, "node-1", "node_node-2.yaml", false)
	mustPing(t, l, a, b)
}

func TestRemovedPodsLeaveNothingAndTheirAddressesRest(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 1})
	before := labtest.OnNode(t, l, "node-1", "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill")
	links := labtest.OnNode(t, l, "node-1", "ip", "-br", "link")
	var pods []lab.Pod
	for i := range 5 {
		pods = append(pods, addPod(t, l, fmt.Sprintf("p%d@node-1", i)))
	}
	for _, p := range pods {
		removePod(t, l, p)
	}
	if after := labtest.OnNode(t, l, "node-1", "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill"); difference(before, after) != "" {
		t.Errorf("flows:\n%s", difference(before, after))
	}
	if after := labtest.OnNode(t, l, "node-1", "ip", "-br", "link"); after != links {
		t.Errorf("links:\n%s", difference(links, after))
	}
	fresh := addPod(t, l, "fresh@node-1")
	for _, p := range pods {
		if labtest.Of("IPv4", p.Addresses) == labtest.Of("IPv4", fresh.Addresses) {
			t.Errorf("%s was given to a new pod at once", labtest.Of("IPv4", fresh.Addresses))
		}
	}
}
