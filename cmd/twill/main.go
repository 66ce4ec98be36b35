// Command twill is the agent of a node and the operator's view of it. Under the name kubectl-twill it is a
// plugin of kubectl and asks the agents of a cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr))
}

// Exit statuses. Anything that could not be answered is exitFailure.
const (
	exitFailure = 1
	exitDropped = 3 // why: the packet does not arrive
	exitOpens   = 4 // policy preview: something more would be allowed
	exitCloses  = 5 // policy preview: something that passes would be dropped
)

// run is the whole program, under the name that it was called by.
func run(ctx context.Context, name string, args []string, stdout, stderr io.Writer) int {
	root := rootCommand(name)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var changes errChanges
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errDropped{}):
		return exitDropped
	case errors.As(err, &changes):
		if changes.closes {
			return exitCloses
		}
		return exitOpens
	}
	fmt.Fprintf(stderr, "%s: %v\n", root.CommandPath(), err)
	return exitFailure
}

// pluginName is how kubectl calls its plugin "twill".
const pluginName = "kubectl-twill"

func rootCommand(name string) *cobra.Command {
	root := &cobra.Command{
		Use:           "twill",
		Short:         "A Kubernetes pod network on Open vSwitch",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.AddCommand(statusCommand(), flowsCommand(), traceCommand(), whyCommand(), dropsCommand(), policyCommand(), verifyCommand(), reportCommand(), askCommand())
	root.SetHelpFunc(help)
	if name == pluginName {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl twill"}
		return root
	}
	root.AddCommand(agentCommand(), checkCommand(), uninstallCommand())
	return root
}
