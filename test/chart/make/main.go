// Command make writes what is derived from charts/twill: its README, and with --manifest the manifest, for which it
// builds Helm first if that is not in the cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/twill-net/twill/test/chart"
	"github.com/twill-net/twill/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	manifest := flag.Bool("manifest", true, "write "+chart.ManifestFile+" as well")
	flag.Parse()
	if err := run(ctx, *manifest); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, manifest bool) error {
	values, err := os.ReadFile(chart.ValuesFile)
	if err != nil {
		return err
	}
	readme, err := chart.Readme(values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(chart.ReadmeFile, []byte(readme), 0o644); err != nil || !manifest {
		return err
	}
	programs, err := cluster.Build(ctx, ".", func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	if err != nil {
		return err
	}
	text, err := programs.Manifest(ctx, ".")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(chart.ManifestFile), 0o755), os.WriteFile(chart.ManifestFile, []byte(text), 0o644))
}
