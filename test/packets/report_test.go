package packets

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// reported are objects of every kind that a report has to hold, beside Nodes and Pods.
const reported = `
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {note: hidden-annotation}}
spec: {clusterIPs: [198.19.0.10], ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [ADDRESS], nodeName: node-1}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-one, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}], ports: [{port: 5432}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: fence}
spec: {tier: Admin, priority: 3, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [203.0.113.7/32]}]}]}
`

// TestAReportHasAllThatTheOfflineCommandsAsk: the last packets that were dropped, and the whole cluster as manifests, which beside the
// dump of the same report answer as the node does.
func TestAReportHasAllThatTheOfflineCommandsAsk(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 1, Config: lab.Config{IPFamily: "ipv4"}})
	pods, err := l.AddPods(t.Context(), []lab.Pod{
		{Namespace: "default", Name: "a", Node: "node-1"},
		{Namespace: "default", Name: "db", Node: "node-1", Labels: map[string]string{"app": "db", "password": "hidden-label"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	labtest.Apply(t, l, strings.ReplaceAll(reported, "ADDRESS", pods[1].Addresses[0].String()))
	dir := t.TempDir()
	file := filepath.Join(dir, "report.tar.gz")
	nobody := netip.MustParseAddr("198.18.1.77")
	eventually(t, patience(), "the report has the packet that was dropped", func() string {
		podExec(t, l, pods[0], "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/"+nobody.String()+"/8080") // what it says to that does not matter
		labtest.OnNode(t, l, "node-1", "twill", "report", "-f", file)
		var list []inspect.Drop
		text := labtest.OnNode(t, l, "node-1", "twill", "drops", "--bundle", file, "-o", "json")
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return err.Error()
		}
		for _, d := range list {
			for _, x := range d.Last {
				if d.Reason == "no-such-pod" && x.From == "pod default/a" && tells(x.Destination, nobody, l.Datapath == "system") {
					return ""
				}
			}
		}
		return fmt.Sprintf("no packet to %s among %s", nobody, text)
	})
	if out, err := exec.Command("tar", "-C", dir, "-xzf", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	in := func(name string) string { return filepath.Join(dir, "twill-report", name) }
	dump := []string{"--dump", in(inspect.FileFlows), "--groups", in(inspect.FileGroups), "--manifests", filepath.Dir(in(inspect.FileManifests))}
	on := func(args ...string) string {
		out, err := l.NodeExec(t.Context(), "node-1", append([]string{"twill"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out.Stdout + out.Stderr
	}
	eventually(t, patience(), "the manifests beside the dump are consistent", func() string {
		labtest.OnNode(t, l, "node-1", "twill", "report", "-f", file)
		if out, err := exec.Command("tar", "-C", dir, "-xzf", file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var v inspect.Verification
		text := on(append([]string{"verify", "-o", "json"}, dump...)...)
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			return err.Error() + ": " + text
		}
		if v.Differences() != 0 || v.Behind != "" || v.Untraced != "" || v.Sampled == 0 {
			return text
		}
		return ""
	})
	for _, q := range [][]string{
		{"why", "default/a", "default/db", "--proto", "tcp", "--port", "5432"}, {"why", "default/a", "203.0.113.7"}, {"why", "default/a", "service/default/web"},
	} {
		live, saved := on(q...), on(append(q, dump...)...)
		if live != saved || !strings.Contains(live, "dropped") {
			t.Errorf("%s: the node says\n%s\nthe report's files say\n%s", strings.Join(q, " "), live, saved)
		}
	}
	manifests, err := os.ReadFile(in(inspect.FileManifests))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy", "ClusterNetworkPolicy"} {
		if !strings.Contains(string(manifests), "\nkind: "+kind+"\n") {
			t.Errorf("no %s among the manifests", kind)
		}
	}
	if strings.Contains(string(manifests), "hidden") {
		t.Errorf("something hidden is in the manifests:\n%s", manifests)
	}
}
