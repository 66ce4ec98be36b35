package bridgetest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/source"
)

// Manifests reads manifests as an agent does, once. Problems with single objects are in what it returns.
func Manifests(t testing.TB, manifests string) *source.Manifests {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(manifests), 0o644); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	synced := make(chan struct{}, 1)
	var m *source.Manifests
	m, err := source.NewManifests(source.ManifestsConfig{Dir: dir, Log: log, OnChange: func(source.Key) {
		if m.Synced() {
			select {
			case synced <- struct{}{}:
			default:
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	select {
	case <-synced:
		cancel()
		<-ended
	case err := <-ended:
		t.Fatalf("reading manifests: %v", err)
	}
	return m
}
