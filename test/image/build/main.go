// Command build makes the container image of Twill: an archive in the OCI image layout, without a container engine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/twill-net/twill/test/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	cache, _ := os.UserCacheDir()
	var t image.Twill
	out := flag.String("out", "bin/twill.tar", "archive to write; OUT.spdx.json beside it lists what is inside")
	flag.StringVar(&t.Checkout, "checkout", ".", "root of the repository")
	flag.StringVar(&t.Name, "name", "images.twill.example/twill:latest", "reference of the image")
	flag.StringVar(&t.Version, "version", "unknown", "version of Twill")
	flag.StringVar(&t.Arch, "arch", runtime.GOARCH, "amd64 or arm64")
	flag.StringVar(&t.Cache, "cache", filepath.Join(cache, "twill", "debian"), "where downloaded packages are kept")
	flag.Parse()
	t.Compress = true
	err := os.MkdirAll(filepath.Dir(*out), 0o755)
	if err == nil {
		err = t.Build(ctx, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
	info, err := os.Stat(*out)
	if err == nil {
		fmt.Printf("%s: %s, %.0f MiB\n", *out, t.Name, float64(info.Size())/(1<<20))
	}
}
