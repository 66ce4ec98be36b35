// Command twill-lab builds a pod network of several nodes on one machine, out of network namespaces,
// real Open vSwitch and real agents, to look at and to try things in. docs/lab.md is its manual;
// package test/lab does the work.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; exec and node exec give the exit code of the
// command, and 125 when it could not be run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/lab"
)

// version is set when linking.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, newRoot(), os.Args[1:])
	stop()
	os.Exit(code)
}

// execute runs the command line and returns the exit code.
func execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		if code.err == nil {
			return code.code
		}
		fmt.Fprintln(root.ErrOrStderr(), "twill-lab:", err)
		return code.code
	}
	fmt.Fprintln(root.ErrOrStderr(), "twill-lab:", err)
	if ctx.Err() != nil {
		return 130 // 128 + SIGINT, as shells have it
	}
	return 1
}

// exitCode is an error that wants a certain exit code. Without err it is silent: the command that
// was run has said what there was to say.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string { return e.err.Error() }
func (e exitCode) Unwrap() error { return e.err }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return exitCode{code: 2, err: fmt.Errorf("%w; see --help", err)}
}

// app is what all commands share.
type app struct {
	name   string
	output string
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:           "twill-lab",
		Short:         "Build a Twill pod network of several nodes on this machine",
		Long:          "twill-lab builds a Twill pod network of several nodes on this machine: each node is a network namespace\nwith its own Open vSwitch and a real agent. It needs root.",
		Version:       version,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usage(fmt.Errorf("--output %q: must be text or json", a.output))
			}
			return nil
		},
	}
	root.PersistentFlags().StringVar(&a.name, "name", lab.DefaultName, "which lab; several may run side by side")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "text or json, where there is something to read")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(a.up(), a.down(), a.status(), a.node(), a.pod(), a.exec(), a.outside(), a.apply(), a.delete(), a.agent(), a.ovs(), a.tunnel(), a.demo())
	return root
}

// exactly is cobra.ExactArgs with the exit code of wrong usage.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return usage(cobra.ExactArgs(n)(cmd, args)) }
}

// noCommand refuses what is left over where a command was expected.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()))
	}
	return nil
}

// group is a command that only has commands below it.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: noCommand, RunE: func(cmd *cobra.Command, _ []string) error {
		return usage(fmt.Errorf("%s needs a command", cmd.CommandPath()))
	}}
	c.AddCommand(commands...)
	return c
}

// print writes v as JSON, or lets text write it.
func (a *app) print(w io.Writer, v any, text func(io.Writer)) error {
	if a.output == "text" {
		text(w)
		return nil
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
