//go:build e2e

package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// conformanceFocus is what runs without FOCUS. The tests of NetworkPolicy carry a feature, and are asked for by name.
const conformanceFocus = `\[sig-network\]`

// TestConformance runs Kubernetes' own tests of the network. FOCUS in the environment chooses others, a regular
// expression of names; SKIP leaves more of them out.
func TestConformance(t *testing.T) {
	c := upForE2E(t)
	focus := os.Getenv("FOCUS")
	if focus == "" {
		focus = conformanceFocus
	}
	skips, err := readSkips(filepath.Join(checkout(t), "test/cluster/testdata/e2e-skip.txt"))
	must(t, err)
	began := time.Now()
	report := c.runE2E(t, focus, skips)
	var passed, failed, unfit []string
	for _, r := range report {
		switch {
		case r.Failure != nil:
			failed = append(failed, r.Name+"\n      "+firstLines(r.Failure.Message, 4))
		case r.Skipped == nil:
			passed = append(passed, r.Name)
		case r.Skipped.Message != "" && r.Skipped.Message != "skipped":
			unfit = append(unfit, r.Name+": "+firstLines(r.Skipped.Message, 1))
		}
	}
	t.Logf("%d passed, %d failed, %d left themselves out, in %s", len(passed), len(failed), len(unfit), time.Since(began).Round(time.Second))
	for _, f := range failed {
		t.Errorf("failed: %s", f)
	}
	for _, u := range unfit {
		t.Logf("left itself out: %s", u)
	}
	if len(passed) == 0 {
		t.Errorf("no test ran: does %q match any?", focus)
	}
	for _, s := range skips {
		if !slices.ContainsFunc(report, func(r specReport) bool { return s.expression.MatchString(r.Name) }) {
			t.Errorf("e2e-skip.txt: no test is called %q: remove the line", s.expression)
		}
	}
}

// upForE2E is a cluster as Kubernetes' tests want it: Twill, DNS, an API server that reaches pods, and a load balancer. It has two
// nodes, or NODES in the environment.
func upForE2E(t *testing.T) *Cluster {
	ctx, root := t.Context(), checkout(t)
	nodes, err := strconv.Atoi(cmp.Or(os.Getenv("NODES"), "2"))
	if err != nil {
		t.Fatalf("NODES in the environment is no number: %v", err)
	}
	programs, err := BuildE2E(ctx, root, t.Logf)
	must(t, err)
	cluster, err := Build(ctx, root, t.Logf)
	must(t, err)
	agnhost, err := programs.BuildAgnhost(ctx, root, cluster, t.TempDir())
	must(t, err)
	injector, err := programs.BuildInjector(t.TempDir())
	must(t, err)
	c := up(t, Options{Name: "e2e", Nodes: nodes, DualStack: true, Images: []string{agnhost, injector}})
	for _, n := range c.Nodes {
		_, err := n.Exec(ctx, "cp", programs.path("portmap"), "/opt/cni/bin/portmap")
		must(t, err)
	}
	must(t, c.Install(ctx, root, "cni.portmap=true"))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.Apply(ctx, root, "coredns.yaml"))
	must(t, c.RolledOut(ctx, "kube-system", "deployment/coredns", upTimeout))
	must(t, c.routePods(ctx))
	must(t, c.balance(ctx, programs.path("loadbalancer")))
	return c
}

// balance starts a load balancer in the namespace of the control plane, where the tests run too. They talk to it from
// addresses outside of the nodes' network: some of them take an address inside for that of a node.
func (c *Cluster) balance(ctx context.Context, program string) error {
	const client, client6 = "203.0.113.254", "2001:db8:113::fffe"
	if err := ip(ctx, c.namespace("cp"), "addr add "+client+"/32 dev lo", "addr add "+client6+"/128 dev lo nodad"); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := ip(ctx, n.NetNS(), "route add "+client+" via "+controlPlaneIP, "route add "+client6+" via "+controlPlaneIP6); err != nil {
			return err
		}
	}
	_, err := c.spawnBeside(program, "--kubeconfig="+c.Kubeconfig("admin"), "--clients="+client+","+client6)
	return err
}

// routePods lets the control plane reach pods, as a network does in which it is no node: the API server's proxy and
// webhooks connect to them.
func (c *Cluster) routePods(ctx context.Context) error {
	for _, n := range c.Nodes {
		out, err := c.Kubectl(ctx, "get", "node", n.Name, "-o", "jsonpath={.spec.podCIDRs[*]}")
		if err != nil {
			return err
		}
		for cidr := range strings.FieldsSeq(out) {
			via := n.IP()
			if strings.Contains(cidr, ":") {
				via = n.IP6()
			}
			if err := ip(ctx, c.namespace("cp"), "route replace "+cidr+" via "+via); err != nil {
				return err
			}
		}
	}
	return nil
}

// specReport is one test in a report of Ginkgo (JUnit).
type specReport struct {
	Name    string   `xml:"name,attr"`
	Failure *message `xml:"failure"`
	Skipped *message `xml:"skipped"`
}

type message struct {
	Message string `xml:"message,attr"`
}

// runE2E runs tests, two at a time, and returns what became of each that there is.
func (c *Cluster) runE2E(t *testing.T, focus string, skips []skip) []specReport {
	t.Helper()
	programs, err := BuildE2E(t.Context(), checkout(t), t.Logf)
	must(t, err)
	out := t.TempDir()
	args := []string{programs.path("ginkgo"), "run", "--procs=2", "--no-color", "--timeout=4h", "--poll-progress-after=10m",
		"--output-dir=" + out, "--junit-report=report.xml", "--focus=" + focus, `--skip=\[Disruptive\]`}
	for _, s := range skips {
		args = append(args, "--skip="+s.expression.String())
	}
	if more := os.Getenv("SKIP"); more != "" {
		args = append(args, "--skip="+more)
	}
	args = append(args, programs.path("e2e.test"), "--", "--kubeconfig="+c.Kubeconfig("admin"), "--provider=skeleton",
		"--kubectl-path="+c.Programs.path("kubectl"), fmt.Sprint("--num-nodes=", len(c.Nodes)), "--disable-log-dump", "--dns-domain=cluster.local")
	log, err := os.Create(filepath.Join(os.TempDir(), "twill-e2e.log"))
	must(t, err)
	defer log.Close()
	t.Logf("what the tests say goes to %s", log.Name())
	// The names that our images have: Kubernetes' test/images/README.md tells of this file.
	names := filepath.Join(out, "repositories.yaml")
	must(t, os.WriteFile(names, []byte("gcRegistry: images.k8s.example\npromoterE2eRegistry: images.k8s.example/e2e-test-images\n"), 0o644))
	cmd := c.ControlCommand(t.Context(), append([]string{"env", "KUBE_TEST_REPO_LIST=" + names}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	ran := cmd.Run()
	data, err := os.ReadFile(filepath.Join(out, "report.xml"))
	if err != nil {
		t.Fatalf("the tests left no report: %v; see %s", ran, log.Name())
	}
	var report struct {
		Suites []struct {
			Cases []specReport `xml:"testcase"`
		} `xml:"testsuite"`
	}
	must(t, xml.Unmarshal(data, &report))
	var all []specReport
	for _, s := range report.Suites {
		for _, r := range s.Cases {
			if strings.HasPrefix(r.Name, "[It]") {
				all = append(all, r)
			} else if r.Failure != nil { // of the whole suite: BeforeSuite and the like
				t.Errorf("%s: %s", r.Name, r.Failure.Message)
			}
		}
	}
	return all
}

// skip is a line of the list of tests that are left out.
type skip struct {
	expression *regexp.Regexp
	reason     string
}

func readSkips(path string) ([]skip, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var skips []skip
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		expression, reason, _ := strings.Cut(line, " # ")
		if strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: %q has no reason: write EXPRESSION # REASON", path, number, line)
		}
		compiled, err := regexp.Compile(expression)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, number, err)
		}
		skips = append(skips, skip{compiled, reason})
	}
	return skips, lines.Err()
}

func TestSkipsWantAReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skips")
	for text, want := range map[string]string{
		"# c\n\nfoo # no kernel module\n": "",
		"foo\n":                           `skips:1: "foo" has no reason`,
		"# c\nfoo(  # why\n":              "skips:2: error parsing regexp",
	} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		skips, err := readSkips(path)
		if want == "" && (err != nil || len(skips) != 1 || skips[0].reason != "no kernel module") {
			t.Errorf("%q: got %v, %v", text, skips, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func firstLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[:min(n, len(lines))], "\n      ")
}
