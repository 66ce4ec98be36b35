package lab_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/ovsd"
)

// TestMain is also the program that TestDownRemovesWhatAKilledUpLeft kills.
func TestMain(m *testing.M) {
	if name := os.Getenv("LAB_TEST_UP"); name != "" {
		_, err := lab.Up(context.Background(), lab.Options{Config: lab.Config{Name: name, NoAgent: true}, Nodes: 3})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newName is the name of a lab that does not exist, in a directory of the test's own, and is gone
// after the test.
func newName(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		ovsd.Missing(t, "network namespaces need root")
	}
	for _, tool := range []string{"ip", "ethtool", "ping", "ovs-vswitchd"} {
		ovsd.Need(t, tool)
	}
	if os.Getenv("TWILL_LAB_DIR") == "" {
		dir, err := os.MkdirTemp("", "tl")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		t.Setenv("TWILL_LAB_DIR", dir)
	}
	name := "t" + strings.ToLower(rand.Text()[:6])
	t.Cleanup(func() {
		if err := lab.Down(context.WithoutCancel(t.Context()), name); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	return name
}

// upWithoutAgent is a lab whose nodes have no agent.
func upWithoutAgent(t *testing.T, nodes int) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: newName(t), NoAgent: true}, Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// traces lists all that exists of a lab: its namespaces, processes that were started for it, its
// directory, and links that should be in namespaces and are not.
func traces(t *testing.T, name string) []string {
	t.Helper()
	found, err := filepath.Glob("/run/netns/twl-" + name + "-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lab.Dir(name)); err == nil {
		found = append(found, lab.Dir(name))
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range cmdlines {
		cmdline, _ := os.ReadFile(file) // it may have ended
		if strings.Contains(string(cmdline), lab.Dir(name)+"/") && !ofAnother(file, lab.Dir(name)) {
			found = append(found, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	links, err := filepath.Glob("/sys/class/net/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if base := filepath.Base(link); base == "outside" || base == "br-phy" || strings.HasPrefix(base, "node-") {
			found = append(found, link)
		}
	}
	slices.Sort(found)
	return found
}

// ofAnother is true for a process that one of the lab's own processes has started and still looks after, an
// agent's ovs-ofctl for instance, also between fork and exec: such come and go. One that is left behind has
// another parent.
func ofAnother(file, labDir string) bool {
	status, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "status")) // it may have ended
	_, rest, _ := strings.Cut(string(status), "\nPPid:")
	parent, _, _ := strings.Cut(rest, "\n")
	cmdline, _ := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(parent), "cmdline"))
	return strings.Contains(string(cmdline), labDir+"/")
}

// mustReturnTo waits until the traces of a lab are as they were.
func mustReturnTo(t *testing.T, before []string, name string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		after := traces(t, name)
		if slices.Equal(before, after) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			return
		}
		time.Sleep(20 * time.Millisecond) // a process of another program has no event for us
	}
}

func TestDownLeavesNothingOfWhatUpMade(t *testing.T) {
	l := upWithoutAgent(t, 2)
	// 2 namespaces of the underlay and 2 nodes, the directory, 2 daemons on each node.
	if got := traces(t, l.Name); len(got) != 9 {
		t.Errorf("a lab of 2 nodes consists of %d things, want 9:\n%s", len(got), strings.Join(got, "\n"))
	}
	// Whoever is inside goes, too.
	sleeper := exec.Command("ip", "netns", "exec", "twl-"+l.Name+"-n1", "sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	waitFor(t, "sleep to be inside", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", sleeper.Process.Pid))
		return string(comm) == "sleep\n"
	})
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, l.Name); len(got) != 0 {
		t.Errorf("down left\n%s", strings.Join(got, "\n"))
	}
	if err := <-ended; err == nil {
		t.Error("a process inside the lab was not ended")
	}
	if err := l.Down(t.Context()); err != nil {
		t.Errorf("second down: %v", err)
	}
}

func TestDownRemovesWhatAKilledUpLeft(t *testing.T) {
	for _, moment := range []string{
		"/run/netns/twl-NAME-underlay",
		"/run/netns/twl-NAME-n1",
		"DIR/nodes/node-1/ovs/conf.db",
		"DIR/nodes/node-1/ovs/ovsdb-server.pid",
		"DIR/nodes/node-2/ovs/ovs-vswitchd.pid",
		"DIR/manifests/node_node-1.yaml",
	} {
		t.Run(filepath.Base(moment), func(t *testing.T) {
			name := newName(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LAB_TEST_UP="+name)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			file := strings.NewReplacer("NAME", name, "DIR", lab.Dir(name)).Replace(moment)
			waitFor(t, file, func() bool { _, err := os.Stat(file); return err == nil })
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if len(traces(t, name)) == 0 {
				t.Fatal("nothing was left to remove")
			}
			if err := lab.Down(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if got := traces(t, name); len(got) != 0 {
				t.Errorf("down left\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

func TestAnInterruptedUpTakesDownWhatItBuilt(t *testing.T) {
	name := newName(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := lab.Up(ctx, lab.Options{Config: lab.Config{Name: name, NoAgent: true}})
		failed <- err
	}()
	waitFor(t, "the first node", func() bool { _, err := os.Stat("/run/netns/twl-" + name + "-n1"); return err == nil })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("up: %v, want context.Canceled", err)
	}
	if got := traces(t, name); len(got) != 0 {
		t.Errorf("up left\n%s", strings.Join(got, "\n"))
	}
}

func TestAnAgentThatEndsFailsUpWithItsLastWords(t *testing.T) {
	name := newName(t)
	bin := t.TempDir()
	for _, program := range []string{"twill", "twill-cni"} {
		if err := os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\necho the sky fell\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: name, BinDir: bin}, Nodes: 1})
	if err == nil || !strings.Contains(err.Error(), "agent of node-1 ended before it was ready") || !strings.Contains(err.Error(), "the sky fell") {
		t.Errorf("up: %v", err)
	}
	if got := traces(t, name); len(got) != 0 {
		t.Errorf("up left\n%s", strings.Join(got, "\n"))
	}
}

func TestALabCannotBeBuiltTwice(t *testing.T) {
	l := upWithoutAgent(t, 1)
	_, err := lab.Up(t.Context(), lab.Options{Config: lab.Config{Name: l.Name, NoAgent: true}, Nodes: 1})
	if want := "exists already: take it down with `twill-lab down --name " + l.Name + "`"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("second up: %v, want %q", err, want)
	}
	if _, err := lab.Open(l.Name); err != nil {
		t.Errorf("the refused up harmed the first: %v", err)
	}
}

func TestLabsSideBySideUseTheSameAddressesAndDoNotMeet(t *testing.T) {
	one, two := upWithoutAgent(t, 1), upWithoutAgent(t, 1)
	for _, l := range []*lab.Lab{one, two} {
		mustNodeExec(t, l, "node-1", "ip", "link", "set", "lo", "alias", l.Name)
	}
	for _, l := range []*lab.Lab{one, two} {
		if got := mustNodeExec(t, l, "node-1", "ip", "link", "show", "lo"); !strings.Contains(got, "alias "+l.Name) {
			t.Errorf("node-1 of %s: %s", l.Name, got)
		}
		mustPing(t, l, "node-1", "198.51.100.254", "2001:db8:100::fe")
	}
	if err := one.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPing(t, two, "node-1", "198.51.100.254", "2001:db8:100::fe")
}

// waitFor waits until a condition holds that nobody announces.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func mustNodeExec(t *testing.T, l *lab.Lab, node string, args ...string) string {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, args...)
	if err != nil || out.Code != 0 {
		t.Fatalf("%s on %s: %v, exit code %d, %s%s", strings.Join(args, " "), node, err, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

func mustPing(t *testing.T, l *lab.Lab, node string, to ...string) {
	t.Helper()
	for _, address := range to {
		mustNodeExec(t, l, node, "ping", "-c1", "-W2", address)
	}
}

func nodeNames(l *lab.Lab) []string {
	var names []string
	for _, n := range l.Nodes() {
		names = append(names, n.Name)
	}
	return names
}
