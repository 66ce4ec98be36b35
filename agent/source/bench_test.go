package source

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// size is the number of Nodes of the benchmarks.
const size = 1000

// BenchmarkFirstSyncWithTheAPI is from nothing to Synced.
func BenchmarkFirstSyncWithTheAPI(b *testing.B) {
	server := newAPIServer(b)
	for i := range size {
		server.set(apiNode(fmt.Sprint("n", i), fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("198.18.%d.%d", i>>8, i&255)))
	}
	config := server.kubeconfig()
	for b.Loop() {
		w := newWitness(b)
		a, err := NewAPI(APIConfig{Kubeconfig: config, Log: w.log, OnChange: w.onChange})
		must(b, err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		w.until("it is synced", a.Synced)
		cancel()
		must(b, <-done)
		if len(a.Nodes()) != size {
			b.Fatal(len(a.Nodes()))
		}
	}
}

// BenchmarkOneChangeInADirectory has all Nodes in one file, or each in its own, and reads what an event
// names after one changed.
func BenchmarkOneChangeInADirectory(b *testing.B) {
	for _, files := range []int{1, size} {
		b.Run(fmt.Sprint(files, "files"), func(b *testing.B) {
			dir := b.TempDir()
			for f := range files {
				var text strings.Builder
				for i := f; i < size; i += files {
					text.WriteString(manifest(fmt.Sprint("n", i), fmt.Sprintf("198.18.%d.%d", i>>8, i&255)))
				}
				write(b, filepath.Join(dir, fmt.Sprint("nodes", f, ".yaml")), text.String())
			}
			m, err := NewManifests(ManifestsConfig{Dir: dir, Log: silent()})
			must(b, err)
			must(b, m.read())
			path, round := filepath.Join(dir, "nodes0.yaml"), 0
			last := func() string {
				var text strings.Builder
				for i := 0; i < size; i += files {
					text.WriteString(manifest(fmt.Sprint("n", i), fmt.Sprintf("198.18.%d.%d", i>>8, i&255)))
				}
				round++
				text.WriteString(manifest("changing", fmt.Sprintf("198.19.%d.%d", round>>8, round&255)))
				return text.String()
			}
			for b.Loop() {
				write(b, path, last())
				must(b, m.readNamed(map[string]bool{"nodes0.yaml": true}))
			}
			if len(m.Nodes()) != size+1 {
				b.Fatal(len(m.Nodes()))
			}
		})
	}
}
