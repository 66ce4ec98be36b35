package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/agent/inspect"
)

const previews = "testdata/preview/"

// previewDir is a directory with the objects of the cluster alone.
func previewDir(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(previews + "cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestAPreviewReadsAsAnOperatorReadsIt has each answer as text, and its exit status.
func TestAPreviewReadsAsAnOperatorReadsIt(t *testing.T) {
	dir := previewDir(t)
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"db", []string{"-f", "db.yaml"}, exitCloses},
		{"open", []string{"-f", "open.yaml"}, exitOpens},
		{"admin", []string{"-f", "admin.yaml"}, exitCloses},
		{"delete", []string{"--delete", "networkpolicy/shop/api"}, exitOpens},
		{"delete-and-apply", []string{"--delete", "networkpolicy/shop/api", "-f", "db.yaml"}, exitCloses},
		{"nobody", []string{"-f", "nobody.yaml"}, 0},
		{"nobody-shop", []string{"-f", "nobody.yaml", "-n", "shop", "-f", "db.yaml", "-o", "yaml"}, exitCloses},
		{"same", []string{"-f", "cluster.yaml"}, 0},
		{"json", []string{"-f", "open.yaml", "-o", "json"}, exitOpens},
	} {
		args := []string{"policy", "preview", "--manifests", dir}
		for _, a := range c.args {
			if strings.HasSuffix(a, ".yaml") {
				a = previews + a
			}
			args = append(args, a)
		}
		code, stdout, stderr := twill(t, "twill", args...)
		got := fmt.Sprintf("$ twill policy preview %s\n%s%sexit status %d\n", strings.Join(c.args, " "), stdout, stderr, code)
		path := filepath.Join(previews, c.name+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
		if code != c.code {
			t.Errorf("%s: exit status %d, want %d", c.name, code, c.code)
		}
	}
}

// TestAPreviewThatCannotBeHadNamesWhatIsWrong: file, line, object and field, or what is missing.
func TestAPreviewThatCannotBeHadNamesWhatIsWrong(t *testing.T) {
	dir := previewDir(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"-f", previews + "broken.yaml"}, "broken.yaml:6: NetworkPolicy/shop/ports: spec.ingress[0].ports[0]: endPort 80 is below port 90"},
		{[]string{"-f", previews + "torn.yaml"}, "torn.yaml:3: broken YAML"},
		{[]string{"-f", previews + "typed.yaml"}, "typed.yaml:1: NetworkPolicy/default/typed: json: cannot unmarshal number"},
		{[]string{"-f", previews + "absent.yaml"}, "no such file"},
		{[]string{"-f", previews + "db.yaml", "-f", previews + "db.yaml"}, "networkpolicy/shop/db is defined in testdata/preview/db.yaml already"},
		{[]string{"--delete", "shop/api"}, `"shop/api" names no policy: use networkpolicy/NAMESPACE/NAME`},
		{[]string{"--delete", "networkpolicy/shop/none"}, "there is no networkpolicy/shop/none to delete"},
		{nil, "name manifests with -f, or policies with --delete"},
		{[]string{"-f", previews + "db.yaml", "--dump", "/dev/null"}, "--dump says nothing about policies"},
		{[]string{"-f", previews + "db.yaml", "-o", "xml"}, "use text, json or yaml"},
	} {
		code, stdout, stderr := twill(t, "twill", append([]string{"policy", "preview", "--manifests", dir}, c.args...)...)
		if code != exitFailure || stdout != "" || !strings.Contains(stderr, c.says) {
			t.Errorf("%v: status %d, says %q and %q; want %q", c.args, code, stdout, stderr, c.says)
		}
	}
}

// TestAReportAnswersPreviews: it has the objects of the cluster.
func TestAReportAnswersPreviews(t *testing.T) {
	objects := `{"pods": [{"Namespace": "shop", "Name": "db", "Labels": "app=db", "Addresses": ["198.18.1.12"]},
	  {"Namespace": "shop", "Name": "web", "Labels": "app=web", "Addresses": ["198.18.1.13"]}],
	  "nodes": [{"Name": "alpha", "PodCIDRs": ["198.18.1.0/24"], "Addresses": ["198.51.100.1"]}]}`
	path := filepath.Join(t.TempDir(), "report.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := inspect.WriteArchive(f, inspect.Meta{Node: "alpha"}, []inspect.File{{Name: inspect.FileObjects, Data: []byte(objects)}}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	code, stdout, stderr := twill(t, "twill", "policy", "preview", "--bundle", path, "-f", previews+"db.yaml")
	if code != exitCloses || !strings.Contains(stdout, "all 2 pods of shop, anywhere else → shop/db everything: allowed → dropped by shop/db") {
		t.Errorf("status %d, says %q and %q", code, stdout, stderr)
	}
}
