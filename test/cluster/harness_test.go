//go:build e2e

package cluster

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Hold()
	os.Exit(m.Run())
}

func checkout(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	return root
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// up starts a cluster that goes away with the test; if the test has failed, with the ends of its logs. KUBE_PROXY in
// the environment has kube-proxy serve Services there, and not Twill. TWILL_CLUSTER_IMAGES is a directory with the images' archives
// where they are built already.
func up(t *testing.T, o Options) *Cluster {
	t.Helper()
	var err error
	o.Log = t.Logf
	o.KubeProxy = o.KubeProxy || os.Getenv("KUBE_PROXY") != ""
	o.Programs, err = Build(t.Context(), checkout(t), t.Logf)
	must(t, err)
	if dir := os.Getenv("TWILL_CLUSTER_IMAGES"); dir != "" {
		built, err := filepath.Glob(filepath.Join(dir, "*.tar"))
		must(t, err)
		if len(built) == 0 {
			t.Fatalf("TWILL_CLUSTER_IMAGES: no archives in %s", dir)
		}
		o.Images = append(o.Images, built...)
	} else {
		began := time.Now()
		images, err := o.Programs.BuildImages(t.Context(), checkout(t), t.TempDir())
		must(t, err)
		o.Images = append(o.Images, images...)
		t.Logf("images built in %s", time.Since(began).Round(time.Second))
	}
	c, err := Up(t.Context(), o)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() {
			t.Log(c.Describe(ctx))
		}
		if err := c.Down(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.Dir); err == nil {
			t.Errorf("%s is still there", c.Dir)
		}
		if pids := marked(c.Dir); len(pids) > 0 {
			t.Errorf("processes %v of the cluster are still there", pids)
		}
	})
	return c
}
