package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// onPaper is a lab that consists of a directory only.
func onPaper(t *testing.T) *Lab {
	t.Helper()
	t.Setenv("TWILL_LAB_DIR", t.TempDir())
	l := &Lab{Config: Config{Name: "paper", IPFamily: "dual"}, dir: Dir("paper")}
	if err := os.MkdirAll(l.path("manifests"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Lab) files(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(l.path("manifests", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

const threeObjects = `
# a comment, and an empty document
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: shop}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: db, namespace: shop}
---
{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}
`

func TestApplyWritesOneFilePerObjectAndDeleteRemovesIt(t *testing.T) {
	l := onPaper(t)
	objects, err := ParseManifests([]byte(threeObjects))
	if err != nil {
		t.Fatal(err)
	}
	applied, err := l.Apply(objects)
	if want := []string{"namespace/shop", "networkpolicy/shop/db", "service/default/web"}; err != nil || !slices.Equal(applied, want) {
		t.Errorf("applied %v, %v, want %v", applied, err, want)
	}
	if got, want := l.files(t), []string{"namespace_shop.yaml", "networkpolicy_shop_db.yaml", "service_default_web.yaml"}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	deleted, err := l.Delete(objects[:2])
	if want := []string{"namespace/shop", "networkpolicy/shop/db"}; err != nil || !slices.Equal(deleted, want) {
		t.Errorf("deleted %v, %v, want %v", deleted, err, want)
	}
	if deleted, err := l.Delete(objects); err != nil || !slices.Equal(deleted, []string{"service/default/web"}) {
		t.Errorf("deleting what is partly gone: %v, %v", deleted, err)
	}
	if got := l.files(t); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}

func TestAnObjectKeepsItsIdentityWhenItIsAppliedAgain(t *testing.T) {
	l := onPaper(t)
	read := func() Object {
		data, err := os.ReadFile(l.path("manifests", "service_default_web.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		objects, err := ParseManifests(data)
		if err != nil {
			t.Fatal(err)
		}
		return objects[0]
	}
	apply := func(text string) Object {
		objects, err := ParseManifests([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Apply(objects); err != nil {
			t.Fatal(err)
		}
		return read()
	}
	first := apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: None}}")
	second := apply("{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 198.18.0.1}}")
	if uid := first.str("metadata", "uid"); uid == "" || uid != second.str("metadata", "uid") {
		t.Errorf("uid was %q and is %q", uid, second.str("metadata", "uid"))
	}
	if got := second.str("spec", "clusterIP"); got != "198.18.0.1" {
		t.Errorf("clusterIP is %q", got)
	}
	if _, err := l.Delete([]Object{second}); err != nil {
		t.Fatal(err)
	}
	third := apply("{apiVersion: v1, kind: Service, metadata: {name: web}}")
	if first.str("metadata", "uid") == third.str("metadata", "uid") {
		t.Error("an object that was deleted and made again has its old uid")
	}
}

func TestManifestsThatAreNoneAreRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		"a: [":                        "document 1: error converting YAML to JSON",
		"{apiVersion: v1}":            "document 1: an object needs apiVersion, kind and metadata.name",
		"{kind: List, items: [1, 2]}": "document 1: an object needs apiVersion, kind and metadata.name",
		"{apiVersion: v1, kind: Pod, metadata: {name: a_b}}":     "document 1: pod/a_b: not a name that Kubernetes would take",
		"{apiVersion: v1, kind: Pod, metadata: {name: ../../x}}": "not a name that Kubernetes would take",
	} {
		if _, err := ParseManifests([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestTheNodeObjectHasTheAddressesOfTheFamiliesAskedFor(t *testing.T) {
	for family, want := range map[string]string{
		"ipv4": "198.18.17.0/24 198.51.100.17",
		"ipv6": "2001:db8:42:11::/64 2001:db8:100::11",
		"dual": "198.18.17.0/24 2001:db8:42:11::/64 198.51.100.17 2001:db8:100::11",
	} {
		l := &Lab{Config: Config{IPFamily: family}}
		var got []string
		o := l.node(17).manifest()[0]
		for _, c := range o["spec"].(map[string]any)["podCIDRs"].([]any) {
			got = append(got, c.(string))
		}
		for _, a := range o["status"].(map[string]any)["addresses"].([]any) {
			if a := a.(map[string]any); a["type"] == "InternalIP" {
				got = append(got, a["address"].(string))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %s, want %s", family, strings.Join(got, " "), want)
		}
	}
}

func TestOptionsThatCannotBeAreRefusedByFlag(t *testing.T) {
	for _, c := range []struct {
		options Options
		want    string
	}{
		{Options{Config: Config{Name: "my-lab"}}, `--name "my-lab": a lab's name is a letter and up to 19 more`},
		{Options{Config: Config{Datapath: "dpdk"}}, `--datapath "dpdk": must be one of netdev, system`},
		{Options{Config: Config{Tunnel: "gre"}}, `--tunnel "gre": must be one of geneve, vxlan`},
		{Options{Config: Config{IPFamily: "both"}}, `--ip-family "both": must be one of ipv4, ipv6, dual`},
		{Options{Config: Config{UnderlayMTU: 1279}}, "--underlay-mtu 1279: must be 1280 to 65535"},
		{Options{Nodes: 201}, "--nodes 201: must be 1 to 200"},
		{Options{Nodes: -1}, "--nodes -1: must be 1 to 200"},
		{Options{}, "<nil>"},
	} {
		c.options.setDefaults()
		if err := c.options.validate(); !strings.HasPrefix(strings.TrimSpace(errText(err)), c.want) {
			t.Errorf("%+v: %v, want %s", c.options, err, c.want)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return "<nil>"
	}
	return err.Error()
}
