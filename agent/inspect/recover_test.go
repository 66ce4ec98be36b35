package inspect_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// nodeManifests are the Nodes of alpha.
func nodeManifests() string {
	var docs []string
	for i, name := range []string{"alpha", "beta", "gamma"} {
		n := nodeObject(name, i+1)
		docs = append(docs, fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s, uid: %s, creationTimestamp: %q}
spec: {podCIDRs: [%q, %q]}
status: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}
`, name, n.UID, n.Created.Format("2006-01-02T15:04:05Z"), n.PodCIDRs[0], n.PodCIDRs[1], n.Addresses[0], n.Addresses[1]))
	}
	return strings.Join(docs, "---\n")
}

// directory is one with these manifests.
func directory(t *testing.T, manifests ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, m := range manifests {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), []byte(m), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// dumped is what a bridge that holds a World prints.
func dumped(t *testing.T, w *flows.World) inspect.Dump {
	t.Helper()
	d := compiled(t, w)
	var flows, groups strings.Builder
	flows.WriteString("OFPST_FLOW reply (OF1.5) (xid=0x2):\n")
	for _, f := range d.Flows() {
		fmt.Fprintf(&flows, " %s\n", f)
	}
	groups.WriteString("OFPST_GROUP_DESC reply (OF1.5) (xid=0x2):\n")
	for _, g := range d.Groups() {
		fmt.Fprintf(&groups, " %s\n", g)
	}
	return inspect.Dump{Flows: flows.String(), Groups: groups.String()}
}

// TestADumpBesideManifestsIsTheNode: a dump of each kind of node, with the objects as kubectl prints them, verifies
// without a difference, and each flow has its object.
func TestADumpBesideManifestsIsTheNode(t *testing.T) {
	lingers := city(t)
	lingers.Lingering = map[netip.Addr]bool{netip.MustParseAddr("198.18.2.33"): true}
	stands := city(t)
	stands.Own = []netip.Addr{netip.MustParseAddr("203.0.113.8")}
	for name, w := range map[string]*flows.World{
		"Services and policies": city(t), "an endpoint that lingers": lingers, "a Service at an address of the host": stands,
	} {
		d := dumped(t, w)
		d.Manifests = directory(t, nodeManifests(), cityManifests)
		s, err := inspect.Recover(d, withoutPrograms{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v, err := s.Verify(t.Context(), 0, 0)
		if err != nil || s.Node != "alpha" || v.Wanted < 200 || v.WantedGroups < 4 || v.Behind != "" || v.Ungrouped != "" {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		for _, x := range append(v.Flows, v.Groups...) {
			t.Errorf("%s: %+v", name, x)
		}
		list, err := s.Flows(t.Context(), inspect.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		for _, f := range list {
			if f.State != "" || strings.Contains(f.Sentence, "no such pod") || strings.Contains(f.Sentence, "no longer in force") {
				t.Errorf("%s: %+v", name, f)
			}
			kinds[f.Owner.Kind()]++
		}
		for _, kind := range []string{"pod", "node", "service", "service-address", "endpoint-address", "networkpolicy", "clause", "peer", "pipeline"} {
			if kinds[kind] == 0 {
				t.Errorf("%s: no flow of a %s among %v", name, kind, kinds)
			}
		}
	}
}

// TestADumpBesideTheManifestsOfAReportIsTheNode: what an agent writes of its objects is as good as what kubectl prints.
func TestADumpBesideTheManifestsOfAReportIsTheNode(t *testing.T) {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	objects, err := source.ReadDirectory(directory(t, nodeManifests(), cityManifests), silent)
	if err != nil {
		t.Fatal(err)
	}
	text, err := source.ManifestsOf(objects, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d := dumped(t, city(t))
	d.Manifests = directory(t, text)
	s, err := inspect.Recover(d, withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), 0, 0)
	if err != nil || s.Node != "alpha" || v.Wanted < 200 || v.WantedGroups < 4 || v.Behind != "" || v.Differences() != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestAPodOfADumpIsKnownByItsCookies: of two pods with one address, as while one has ended, the one that the flows are of.
func TestAPodOfADumpIsKnownByItsCookies(t *testing.T) {
	d := dumped(t, alpha())
	d.Manifests = directory(t, nodeManifests(), strings.ReplaceAll(cityManifests, "name: web-0,", "name: former,"), `
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, uid: uid-web-0}
spec: {nodeName: alpha}
status: {phase: Pending}
`)
	s, err := inspect.Recover(d, withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	place, err := s.Locate("default/web-0")
	if err != nil || fmt.Sprint(place.Addresses) != "[198.18.1.2 2001:db8:1:1::2]" || place.OFPort != 1 {
		t.Errorf("%+v, %v", place, err)
	}
	if _, err := s.Locate("default/former"); err == nil {
		t.Error("a pod without a flow is attached")
	}
}

// TestADumpThatLacksSomethingSaysWhat: what cannot be answered is an error, and what can be only in part has a note.
func TestADumpThatLacksSomethingSaysWhat(t *testing.T) {
	whole := dumped(t, city(t))
	nodes := nodeManifests()
	all := directory(t, nodes, cityManifests)
	lines := strings.SplitAfter(whole.Flows, "\n")
	for _, c := range []struct {
		name string
		d    inspect.Dump
		says string
	}{
		{"within a line", inspect.Dump{Flows: whole.Flows[:len(whole.Flows)/2], Manifests: all}, "it ends within line"},
		{"at the end of a line", inspect.Dump{Flows: strings.Join(lines[:len(lines)/2], ""), Manifests: all}, "it is incomplete, of another bridge, or of an agent of another version"},
		{"another version", inspect.Dump{Flows: strings.ReplaceAll(whole.Flows, "cookie=0x23bf0d24", "cookie=0x33bf0d24"), Manifests: all}, "of an agent of another version"},
		{"a table of another version", inspect.Dump{Flows: "table=teleport, priority=1 actions=drop\n", Manifests: all}, `table "teleport", which this twill does not know`},
		{"a number that is none", inspect.Dump{Flows: "cookie=0xzz, table=1, priority=1 actions=drop\n", Manifests: all}, "line 1 of the flow dump: cookie"},
		{"no flows", inspect.Dump{Flows: "apiVersion: v1\nkind: Node\n", Manifests: all}, "holds not one flow"},
		{"nothing", inspect.Dump{Manifests: all}, "holds not one flow"},
		{"no directory", inspect.Dump{Flows: whole.Flows, Manifests: "/nonexistent"}, "/nonexistent cannot be read"},
		{"no manifests", inspect.Dump{Flows: whole.Flows, Manifests: t.TempDir()}, "no Node is in the manifests"},
		{"half a manifest", inspect.Dump{Flows: whole.Flows, Manifests: directory(t, nodes, "kind: [Pod\n")}, "are not complete: 1.yaml:1: "},
		{"Nodes of another cluster", inspect.Dump{Flows: whole.Flows, Manifests: directory(t, strings.ReplaceAll(nodes, "198.51.100.", "192.0.2."), cityManifests), Node: "delta"}, "which node is the dump of?"},
	} {
		if _, err := inspect.Recover(c.d, withoutPrograms{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", c.name, err, c.says)
		}
	}
	for _, c := range []struct {
		name string
		d    inspect.Dump
		says string
	}{
		{"no Services", inspect.Dump{Flows: whole.Flows, Groups: whole.Groups, Manifests: directory(t, nodes, withoutKinds(cityManifests, "Service", "EndpointSlice"))}, "flows of Services, and the manifests have no Service"},
		{"no policies", inspect.Dump{Flows: whole.Flows, Groups: whole.Groups, Manifests: directory(t, nodes, withoutKinds(cityManifests, "NetworkPolicy"))}, "flows of policies, and the manifests have no policy"},
		{"no Namespaces", inspect.Dump{Flows: whole.Flows, Groups: whole.Groups, Manifests: directory(t, nodes, withoutKinds(cityManifests, "Namespace"))}, "policies and no Namespace"},
		{"a Service of which something is wrong", inspect.Dump{Flows: whole.Flows, Groups: whole.Groups, Manifests: directory(t, nodes, cityManifests+"---\napiVersion: v1\nkind: Service\nmetadata: {name: odd, namespace: default}\nspec: {clusterIP: nowhere, ports: [{port: 1}]}\n")}, `"nowhere"`},
	} {
		s, err := inspect.Recover(c.d, withoutPrograms{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if v, err := s.Verify(t.Context(), 0, 0); err != nil || !strings.Contains(v.Behind, c.says) {
			t.Errorf("%s: %q, %v", c.name, v.Behind, err)
		}
	}
	ungrouped := inspect.Dump{Flows: whole.Flows, Manifests: all}
	s, err := inspect.Recover(ungrouped, withoutPrograms{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), 10, 1)
	if err != nil || !strings.Contains(v.Ungrouped, "--groups FILE") || len(v.Groups) != 0 || v.Differences() != 0 || !strings.Contains(v.Untraced, "--groups FILE") {
		t.Errorf("without groups: %+v, %v", v, err)
	}
	if _, err := s.Why(t.Context(), inspect.Question{From: "default/web-0", To: "shop/db"}); err == nil || !strings.Contains(err.Error(), "a packet cannot be traced") {
		t.Errorf("without groups: %v", err)
	}
}

// withoutKinds leaves kinds out of manifests.
func withoutKinds(manifests string, kinds ...string) string {
	var docs []string
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		out := false
		for _, k := range kinds {
			out = out || strings.Contains(doc, "kind: "+k+"\n")
		}
		if !out {
			docs = append(docs, doc)
		}
	}
	return strings.Join(docs, "\n---\n")
}
