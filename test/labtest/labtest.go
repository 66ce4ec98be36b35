// Package labtest is what tests on a lab (test/lab) have in common: a lab that is taken down after the test,
// whoever is in it by name, and waiting for a condition. Sockets are opened by lab.Inside, so one process
// plays pods, nodes and the host outside.
package labtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/ovsd"
)

// Prepare returns the options of a lab that is taken down after the test; if that has failed, it prints the end of
// each agent's log before: the lab goes with the test. It needs root and the programs in bin/ (`make build`).
// $TWILL_TEST_DATAPATH is the datapath, by default the lab's. Agents take further settings from the
// environment: t.Setenv("TWILL_MTU", …) before.
func Prepare(t *testing.T, o lab.Options) lab.Options {
	t.Helper()
	if os.Geteuid() != 0 {
		ovsd.Missing(t, "network namespaces need root")
	}
	for _, tool := range []string{"ip", "ethtool", "ping", "nft", "conntrack", "ovs-vswitchd"} {
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
	o.Datapath = cmp.Or(o.Datapath, os.Getenv("TWILL_TEST_DATAPATH")) // a test may be about one of them
	o.Name = "t" + strings.ToLower(rand.Text()[:6])
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, o.Name)
		}
		if err := lab.Down(context.WithoutCancel(t.Context()), o.Name); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	return o
}

func showLogs(t *testing.T, name string) {
	logs, _ := filepath.Glob(filepath.Join(lab.Dir(name), "nodes", "*", "agent.log"))
	for _, file := range logs {
		data, _ := os.ReadFile(file)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("%s:\n%s", file, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// Up builds a lab as Prepare says.
func Up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), Prepare(t, o))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// AddPods attaches pods "name@node-1" at once, in namespace default.
func AddPods(t *testing.T, l *lab.Lab, specs ...string) []lab.Pod {
	t.Helper()
	pods := make([]lab.Pod, len(specs))
	for i, spec := range specs {
		name, node, _ := strings.Cut(spec, "@")
		pods[i] = lab.Pod{Namespace: "default", Name: name, Node: node}
	}
	pods, err := l.AddPods(t.Context(), pods)
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// Apply puts manifests into the cluster, and returns how to take them out.
func Apply(t *testing.T, l *lab.Lab, manifests string) (remove func()) {
	t.Helper()
	objects, err := lab.ParseManifests([]byte(manifests))
	if err == nil {
		_, err = l.Apply(objects)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := l.Delete(objects); err != nil {
			t.Fatal(err)
		}
	}
}

// Of picks the address of a family, "IPv4" or "IPv6"; the zero Addr if there is none.
func Of(family string, addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if FamilyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}

// FamilyOf is "IPv4" or "IPv6".
func FamilyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Node is a node that has to be there.
func Node(t *testing.T, l *lab.Lab, name string) *lab.Node {
	t.Helper()
	n, err := l.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// NodeNS and OutsideNS are the paths of the network namespaces of a node and of the host outside.
func NodeNS(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	return "/run/netns/" + Node(t, l, name).NetNS()
}

func OutsideNS(l *lab.Lab) string { return "/run/netns/twl-" + l.Name + "-outside" }

// OnNode runs a command on a node and returns what it printed; a failure ends the test.
func OnNode(t *testing.T, l *lab.Lab, node string, args ...string) string {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, args...)
	if err != nil || out.Code != 0 {
		t.Fatalf("on %s: %s: %v, exit code %d\n%s%s", node, strings.Join(args, " "), err, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// Eventually waits until a condition holds, lab.Slow times as long on a slow machine; wrong says what is wrong,
// or nil. It returns how long that took.
func Eventually(t *testing.T, within time.Duration, what string, wrong func() error) time.Duration {
	t.Helper()
	within *= lab.Slow()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := wrong()
		if last == nil {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %v", what, within, last)
		}
		<-tick.C
	}
}

// Accept serves each connection to a listener beside the others, until the listener is closed.
func Accept(l net.Listener, serve func(c net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}
