//go:build e2e

package cluster

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestHelm3TakesTheChart: the cluster's tests use Helm 4; Helm 3 must make the same of the chart.
func TestHelm3TakesTheChart(t *testing.T) {
	four, err := Build(t.Context(), checkout(t), t.Logf)
	must(t, err)
	three, err := build(t.Context(), filepath.Join(checkout(t), e2eModule), t.Logf, []target{{out: "helm", pkg: "helm.sh/helm/v3/cmd/helm"}})
	must(t, err)
	if said, err := three.helm(t.Context(), checkout(t), "lint", "--strict", "charts/twill"); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
	for _, set := range []string{"ovs.mode=daemonset", "ovs.mode=host,dashboard.enabled=true,podMonitor.enabled=true,agent.httpAddress=:9455"} {
		want, err := four.Template(t.Context(), checkout(t), "--set", set)
		must(t, err)
		got, err := three.Template(t.Context(), checkout(t), "--set", set)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("--set %s: Helm 3 (+) and Helm 4 (-) differ:\n%s", set, diff)
		}
	}
	if _, err := three.Template(t.Context(), checkout(t), "--set", "tunnel.type=gre"); err == nil {
		t.Error("Helm 3 takes tunnel.type=gre")
	}
}
