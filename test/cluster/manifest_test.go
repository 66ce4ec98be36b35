//go:build e2e

package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/test/chart"
)

func TestTheChartAndItsManifestAreInStep(t *testing.T) {
	p, err := Build(t.Context(), checkout(t), t.Logf)
	must(t, err)
	want, err := p.Manifest(t.Context(), checkout(t))
	must(t, err)
	have, err := os.ReadFile(filepath.Join(checkout(t), chart.ManifestFile))
	must(t, err)
	if diff := cmp.Diff(want, string(have)); diff != "" {
		t.Errorf("%s is not what the chart renders: run make chart\n%s", chart.ManifestFile, diff)
	}
	if said, err := p.helm(t.Context(), checkout(t), "lint", "--strict", "charts/twill"); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}
