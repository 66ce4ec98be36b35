package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

// twill runs the program and returns what it said.
func twill(t *testing.T, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), name, args, &out, &errs)
	return code, out.String(), errs.String()
}

// serveSocket is an agent of another kind.
func serveSocket(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "twl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return path
}

// commands are all that ask an agent.
func commands() [][]string {
	return [][]string{
		{"status"}, {"status", "peers"}, {"status", "ipam"}, {"status", "pods"}, {"flows"}, {"drops"}, {"verify"},
		{"trace", "default/a", "default/b"}, {"why", "default/a", "default/b"}, {"report", "-f", "/dev/null"}, {"ask", "/v1/status"},
	}
}

// TestEachCommandOnABrokenSystemSaysWhatIsMissing: never a stack trace, never an empty answer with status 0.
func TestEachCommandOnABrokenSystemSaysWhatIsMissing(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent/kubeconfig")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	empty := serveSocket(t, func(http.ResponseWriter, *http.Request) {})
	other := serveSocket(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"node": 7, "steps": "many", "wanted": "x"}`)
	})
	old := serveSocket(t, http.NotFound)
	noOVS := serveSocket(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "ovs-vswitchd went away", http.StatusInternalServerError)
	})
	half := filepath.Join(t.TempDir(), "half.tar.gz")
	var whole bytes.Buffer
	if err := inspect.WriteArchive(&whole, inspect.Meta{Node: "n"}, []inspect.File{{Name: inspect.FileFlows, Data: bytes.Repeat([]byte("xyz\n"), 1000)}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(half, whole.Bytes()[:whole.Len()/2], 0o600); err != nil {
		t.Fatal(err)
	}
	poor := filepath.Join(t.TempDir(), "poor.tar.gz")
	if err := os.WriteFile(poor, whole.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	flows := filepath.Join(t.TempDir(), "flows.txt")
	if err := os.WriteFile(flows, []byte("OFPST_FLOW reply (OF1.5) (xid=0x2):\n cookie=0x1, table=60, priority=1 actions=drop\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.txt")
	if err := os.WriteFile(cut, []byte("OFPST_FLOW reply (OF1.5) (xid=0x2):\n cookie=0x1, table=60, prio"), 0o600); err != nil {
		t.Fatal(err)
	}
	node := t.TempDir()
	if err := os.WriteFile(filepath.Join(node, "node.yaml"), []byte("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nspec: {podCIDRs: [198.18.1.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 198.51.100.1}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, program string
		args          []string
		says          string
	}{
		{"no agent", "twill", []string{"--admin-socket", "/nonexistent/agent.sock"}, "no agent answers at /nonexistent/agent.sock"},
		{"an agent without an answer", "twill", []string{"--admin-socket", empty}, "empty answer"},
		{"an agent of another version", "twill", []string{"--admin-socket", other}, "of another version"},
		{"an agent that is too old", "twill", []string{"--admin-socket", old}, "of another version; use the twill of the agent's image"},
		{"no Open vSwitch", "twill", []string{"--admin-socket", noOVS}, "ovs-vswitchd went away"},
		{"no API server", pluginName, nil, "no cluster to ask"},
		{"no report", "twill", []string{"--bundle", "/nonexistent.tar.gz"}, "no such file"},
		{"half a report", "twill", []string{"--bundle", half}, "cut short or damaged"},
		{"a report without a World", "twill", []string{"--bundle", poor}, "has no world.json"},
		{"a dump without manifests", "twill", []string{"--dump", "/dev/null"}, "--dump needs --manifests"},
		{"an empty dump", "twill", []string{"--dump", "/dev/null", "--manifests", t.TempDir()}, "--dump /dev/null"},
		{"half a dump", "twill", []string{"--dump", cut, "--manifests", node}, "the flow dump is cut short: it ends within line 2"},
		{"a dump of another version", "twill", []string{"--dump", flows, "--manifests", node, "--as-node", "node-1"}, "of an agent of another version"},
		{"a dump of another node", "twill", []string{"--dump", flows, "--manifests", node}, "give --as-node"},
		{"a directory without manifests", "twill", []string{"--dump", flows, "--manifests", t.TempDir()}, "no Node is in the manifests in"},
		{"no directory", "twill", []string{"--dump", flows, "--manifests", "/nonexistent"}, "/nonexistent cannot be read"},
		{"no groups", "twill", []string{"--dump", flows, "--groups", "/nonexistent", "--manifests", node}, "--groups /nonexistent"},
		{"groups that are none", "twill", []string{"--dump", flows, "--groups", flows, "--manifests", node}, "this is no output of `ovs-ofctl -O OpenFlow15 dump-groups`"},
		{"groups without flows", "twill", []string{"--groups", flows, "--manifests", node}, "--groups needs --dump"},
		{"an unknown form", "twill", []string{"-o", "xml"}, "use text, json or yaml"},
	} {
		for _, command := range commands() {
			code, stdout, stderr := twill(t, c.program, append(append([]string{}, command...), c.args...)...)
			carried := command[0] == "ask" && strings.Contains(stdout, c.says) // it hands the agent's refusal on
			mayPass := command[0] == "ask" && c.what == "an agent of another version"
			if mayPass || carried {
				continue
			}
			if code == 0 || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "goroutine") || strings.Contains(stderr, "panic") {
				t.Errorf("%s: %s: status %d, says %q and %q; want %q", c.what, strings.Join(command, " "), code, stdout, stderr, c.says)
			}
		}
	}
}

// everyCommand is each command and subcommand of a program but cobra's own.
func everyCommand(program string) (all []*cobra.Command) {
	var walk func(*cobra.Command)
	walk = func(parent *cobra.Command) {
		for _, c := range parent.Commands() {
			if c.Name() != "help" && c.Name() != "completion" {
				all = append(all, c)
				walk(c)
			}
		}
	}
	walk(rootCommand(program))
	return all
}

// TestEachCommandHasHelpWithAnExample: an example is a command line that the program takes, and of that command.
func TestEachCommandHasHelpWithAnExample(t *testing.T) {
	examples := 0
	for _, program := range []string{"twill", pluginName} {
		for _, c := range everyCommand(program) {
			if c.Example == "" || c.Short == "" {
				t.Errorf("%s has no example or no short text", c.CommandPath())
			}
			own := false
			for _, text := range regexp.MustCompile(`(?m)(?:^|[;|] ?)\s*(?:kubectl )?twill [^;|\n]+`).FindAllString(c.Example, -1) {
				words := strings.Fields(text[strings.Index(text, "twill ")+len("twill "):])
				root := rootCommand("twill")
				if strings.Contains(text, "kubectl") {
					root = rootCommand(pluginName)
				}
				meant, rest, err := root.Find(words)
				if err == nil {
					err = meant.ParseFlags(rest)
				}
				if err == nil {
					err = meant.ValidateArgs(meant.Flags().Args())
				}
				if err != nil || !meant.Runnable() {
					t.Errorf("the example %q of %s is no command: %v", text, c.CommandPath(), err)
				}
				own = own || meant.Name() == c.Name() || meant.Parent().Name() == c.Name()
				examples++
			}
			if !own {
				t.Errorf("no example of %s is of it: %q", c.CommandPath(), c.Example)
			}
		}
	}
	if examples < 40 {
		t.Errorf("%d examples were tried", examples)
	}
	if code, out, _ := twill(t, "twill", "completion", "bash"); code != 0 || !strings.Contains(out, "twill") {
		t.Errorf("completion: status %d", code)
	}
	if _, out, _ := twill(t, pluginName, "--help"); !strings.Contains(out, "kubectl twill [command]") || strings.Contains(out, "\n  agent") {
		t.Errorf("the plugin's help: %s", out)
	}
}

func TestAnAnswerOnAPipeIsReadBack(t *testing.T) {
	var b bytes.Buffer
	if err := writeAnswer(&b, 404, []byte("no pod\nsecond line")); err != nil {
		t.Fatal(err)
	}
	r, err := readAnswer(&b)
	if err != nil || r.StatusCode != 404 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, text := range []string{"", "twill", "OCI runtime exec failed\n", "twill x\n"} {
		if _, err := readAnswer(bytes.NewBufferString(text)); err == nil {
			t.Errorf("%q was taken for an answer", text)
		}
	}
}
