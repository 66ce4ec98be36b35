package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/lab"
)

func (a *app) node() *cobra.Command {
	add := &cobra.Command{Use: "add [NODE]", Short: "Add a node; without a name, the lowest number that is free",
		Args: func(cmd *cobra.Command, args []string) error { return usage(cobra.MaximumNArgs(1)(cmd, args)) },
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			n, err := l.AddNode(cmd.Context(), append(args, "")[0])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), map[string]any{"name": n.Name, "addresses": n.Addresses(), "podCIDRs": n.PodCIDRs()},
				func(w io.Writer) { fmt.Fprintln(w, n.Name) })
		})}
	rm := &cobra.Command{Use: "rm NODE", Short: "Remove a node with its pods", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			return l.RemoveNode(cmd.Context(), args[0])
		})}
	run := &cobra.Command{Use: "exec NODE -- COMMAND", Short: "Run a command on a node; twill and the ovs- tools speak to that node",
		Args: commandArgs(1), RunE: a.running(func(cmd *cobra.Command, l *lab.Lab, args []string) (int, error) {
			return l.RunOnNode(cmd.Context(), args[0], command(cmd, args[1:]))
		})}
	return group("node", "Add, remove or enter nodes", add, rm, run)
}

func (a *app) agent() *cobra.Command {
	verb := func(use, short string, f func(*lab.Lab, *cobra.Command, string) error) *cobra.Command {
		return &cobra.Command{Use: use + " NODE", Short: short, Args: exactly(1),
			RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error { return f(l, cmd, args[0]) })}
	}
	return group("agent", "Stop, start or kill the agent of a node",
		verb("stop", "End the agent with SIGTERM", func(l *lab.Lab, cmd *cobra.Command, node string) error {
			return l.StopAgent(cmd.Context(), node)
		}),
		verb("start", "Start the agent and wait until it is ready", func(l *lab.Lab, cmd *cobra.Command, node string) error {
			return l.StartAgent(cmd.Context(), node)
		}),
		verb("kill", "End the agent with SIGKILL", func(l *lab.Lab, cmd *cobra.Command, node string) error {
			return l.KillAgent(cmd.Context(), node)
		}))
}

func (a *app) ovs() *cobra.Command {
	kill := &cobra.Command{Use: "kill NODE", Short: "End ovs-vswitchd of a node with SIGKILL", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			return l.KillOVS(cmd.Context(), args[0])
		})}
	restoreWait := false
	start := &cobra.Command{Use: "start NODE", Short: "Start ovs-vswitchd of a node again", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			return l.StartOVS(cmd.Context(), args[0], restoreWait)
		})}
	start.Flags().BoolVar(&restoreWait, "restore-wait", false, "set other_config:flow-restore-wait first, as Open vSwitch's own start-up script does")
	return group("ovs", "Kill or start Open vSwitch of a node", kill, start)
}

func (a *app) tunnel() *cobra.Command {
	return &cobra.Command{Use: "tunnel geneve|vxlan", Short: "Change the encapsulation and restart the agents", Args: exactly(1),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, args []string) error {
			return l.SetTunnel(cmd.Context(), args[0])
		})}
}
