package main

import (
	"runtime/debug"
	"slices"
	"testing"
)

// The plugin is executed for every pod, so what it links is paid for every pod. This binary links what
// twill-cni does, and the testing package of the standard library.
func TestThePluginLinksFewModules(t *testing.T) {
	allowed := []string{
		"github.com/containernetworking/cni",
		"github.com/sirupsen/logrus", // of the server, in the same package
		"golang.org/x/sys",
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || len(info.Deps) == 0 {
		t.Fatal("this binary does not say what it links")
	}
	for _, module := range info.Deps {
		if !slices.Contains(allowed, module.Path) {
			t.Errorf("twill-cni links %s", module.Path)
		}
	}
}
