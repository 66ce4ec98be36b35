package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

// uninstallTimeout bounds the wait for Open vSwitch.
const uninstallTimeout = 30 * time.Second

func uninstallCommand() *cobra.Command {
	var cfg agent.Config
	var file string
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take away everything that the agent made on this node, and nothing else",
		Long: `Take away everything that the agent made on this node, and nothing else: the CNI configuration and plugin,
the bridge with its ports, links, routes, the nftables table. Drain the node and stop the agent first; give the
same settings as to the agent.`,
		Example: "  twill uninstall --config /etc/twill/agent.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := agent.Load(cmd.Flags(), file, os.LookupEnv); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), uninstallTimeout)
			defer cancel()
			removed, err := agent.Uninstall(ctx, cfg)
			for _, what := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), what)
			}
			return err
		},
	}
	cfg.Flags(c.Flags())
	c.Flags().StringVar(&file, "config", "", "YAML file with values for these flags")
	c.AddCommand(uninstallWaitCommand())
	return c
}
