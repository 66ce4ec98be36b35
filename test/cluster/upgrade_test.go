//go:build e2e

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/image"
)

// TestUpgrade upgrades Twill from the previous commit to this one by Helm, and back, while pods ping each other across
// nodes and ask a Service. PREVIOUS in the environment is another commit to begin with.
func TestUpgrade(t *testing.T) {
	ctx, root := t.Context(), checkout(t)
	const tag = "previous"
	commit := cmp.Or(os.Getenv("PREVIOUS"), "HEAD^")
	previous := checkoutOf(t, root, commit)
	cache, err := Cache()
	must(t, err)
	archive := filepath.Join(t.TempDir(), "previous.tar")
	must(t, image.Twill{
		Checkout: previous, Name: TwillRepository + ":" + tag, Version: tag, Arch: runtime.GOARCH, Cache: filepath.Join(cache, "debian"),
	}.Build(ctx, archive))
	c := up(t, Options{Name: "upgr", Nodes: 2, DualStack: true, Images: []string{archive}})
	must(t, c.Install(ctx, previous, "image.tag="+tag))
	must(t, c.Ready(ctx, upTimeout))
	must(t, c.Apply(ctx, root, "web.yaml"))
	whole(t, c)
	c.runs(t, tag)

	pings, asked := c.pinging(t), c.asking(t)
	began := time.Now()
	must(t, c.Install(ctx, root))
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	t.Logf("from %s to this commit: %s", commit, time.Since(began).Round(100*time.Millisecond))
	c.runs(t, TwillTag)
	pings()
	asked()
	whole(t, c)

	pings, asked = c.pinging(t), c.asking(t)
	began = time.Now()
	_, err = c.Helm(ctx, "rollback", "twill", "1", "--namespace", TwillNamespace)
	must(t, err)
	must(t, c.RolledOut(ctx, TwillNamespace, "daemonset/twill-agent", upTimeout))
	t.Logf("and back: %s", time.Since(began).Round(100*time.Millisecond))
	c.runs(t, tag)
	pings()
	asked()
	whole(t, c)
	crowd(t, c, 10)
}

// checkoutOf is a directory with the files of a commit.
func checkoutOf(t *testing.T, root, commit string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `set -o pipefail; git -C "$1" archive "$2" | tar -x -C "$3"`, "bash", root, commit, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the files of commit %s (does the clone have its history? PREVIOUS names another): %v: %s", commit, err, out)
	}
	return dir
}

// runs fails the test unless all agents are of the image with this tag, and no container has been restarted.
func (c *Cluster) runs(t *testing.T, tag string) {
	t.Helper()
	must(t, Eventually(t.Context(), time.Minute, func(ctx context.Context) error { // until the last old pod is collected
		out, err := c.Kubectl(ctx, "-n", TwillNamespace, "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o",
			`jsonpath={range .items[*]}{.status.containerStatuses[*].image} restarted {.status.containerStatuses[*].restartCount}{"\n"}{end}`)
		want := strings.Repeat(TwillRepository+":"+tag+" restarted 0\n", len(c.Nodes))
		if err == nil && strings.TrimSpace(out) != strings.TrimSpace(want) {
			err = fmt.Errorf("the agents are:\n%s\nwant:\n%s", out, want)
		}
		return err
	}))
}

// asking begins to ask the Service web for the name of a pod, one connection after the other, from a pod of the first
// node and at both families; what it returns ends that, and fails the test if an answer was missing.
func (c *Cluster) asking(t *testing.T) func() {
	t.Helper()
	ctx, node := t.Context(), c.Nodes[0]
	ips, err := c.Kubectl(ctx, "get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")
	must(t, err)
	for ip := range strings.FieldsSeq(ips) {
		if _, err := netip.ParseAddr(ip); err != nil {
			t.Fatal(err)
		}
	}
	const stop = "/run/twill-test-stop"
	// An answer is the name of a pod, web-12345. Five seconds are two retransmissions of the first packet and the answer.
	cmd := node.inPod(ctx, c.podOn(t, node, "app=client"), `good=0 bad=0
while [ ! -e `+stop+` ]; do
  for ip in `+ips+`; do
    out=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/80" && printf "GET /hostname HTTP/1.0\r\n\r\n" >&3 && tail -n1 <&3' "$ip" 2>&1)
    case $out in web-*) good=$((good + 1)) ;; *) bad=$((bad + 1)); echo "$(date +%T.%N) $ip: $out" ;; esac
  done
done
echo "answers $good failures $bad"`)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	return func() {
		t.Helper()
		_, err := node.Exec(ctx, "touch", stop)
		must(t, err)
		_ = cmd.Wait()
		_, err = node.Exec(ctx, "rm", stop)
		must(t, err)
		var good, bad int
		said := strings.Split(strings.TrimSpace(out.String()), "\n")
		if n, err := fmt.Sscanf(said[len(said)-1], "answers %d failures %d", &good, &bad); n != 2 {
			t.Fatalf("%v: %s", err, out.String())
		}
		t.Logf("the Service answered %d times of %d", good, good+bad)
		if good < 10 || bad > 0 {
			t.Errorf("the Service answered %d times and failed %d times:\n%s", good, bad, out.String())
		}
	}
}
