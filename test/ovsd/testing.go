package ovsd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// complaint is a line of a log at level WARN or above.
var complaint = regexp.MustCompile(`(?m)^.*\|(WARN|ERR|EMER)\|.*$`)

// ForTest starts a private Open vSwitch that ends with the test. c.Dir is chosen here when empty: a
// short one, since t.TempDir is often too long for a unix socket. Where the binaries are missing the
// test is skipped, or fails when CI is set in the environment.
func ForTest(t testing.TB, c Config) *OVS {
	t.Helper()
	for _, tool := range []string{dbServer, vswitchd, "ovsdb-tool", "ovs-vsctl", "ovs-ofctl"} {
		Need(t, tool)
	}
	if c.Dir == "" {
		dir, err := os.MkdirTemp("", "ovs")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		c.Dir = dir
	}
	// The context of the test has ended when its cleanups run.
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 15*time.Second)
		defer cancel()
		if t.Failed() {
			if b, err := os.ReadFile(At(c).path(vswitchd + ".log")); err == nil {
				t.Logf("what ovs-vswitchd complained of:\n%s", strings.Join(complaint.FindAllString(string(b), -1), "\n"))
			}
		}
		if err := At(c).Stop(ctx); err != nil {
			t.Errorf("stopping Open vSwitch: %v", err)
		}
	})
	o, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// NetNS is a new network namespace, for a datapath with real devices; it is removed with the test.
// It needs root, and ends the test as Missing does without.
func NetNS(t testing.TB) string {
	t.Helper()
	Need(t, "ip")
	if os.Getuid() != 0 {
		Missing(t, "making a network namespace needs root")
	}
	name := fmt.Sprintf("ovsd-%d-%d", os.Getpid(), time.Now().UnixNano())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		Missing(t, fmt.Sprintf("making network namespace %s: %v: %s", name, err, out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("removing network namespace %s: %v: %s", name, err, out)
		}
	})
	return name
}

// Need skips the test when a tool is missing, or fails it when CI is set.
func Need(t testing.TB, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		Missing(t, tool+" is not installed")
	}
}

// Missing ends the test for want of something: a skip here, a failure when CI is set.
func Missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}
