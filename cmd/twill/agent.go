package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

func agentCommand() *cobra.Command {
	var cfg agent.Config
	var file string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Keep the bridge of this node in step with Kubernetes",
		Long: `Keep the bridge of this node in step with Kubernetes.

Every flag can also be set in the file given by --config (YAML, the flag's name is the key) and in the
environment (TWILL_ and the name in capitals: TWILL_TUNNEL_TYPE). A flag wins over the environment, the
environment over the file.`,
		Example: "  twill agent --node-name worker-1 --cluster-cidr 10.244.0.0/16",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := agent.Load(cmd.Flags(), file, os.LookupEnv); err != nil {
				return err
			}
			return agent.Run(cmd.Context(), cfg, version)
		},
	}
	cfg.Flags(c.Flags())
	c.Flags().StringVar(&file, "config", "", "YAML file with values for these flags")
	return c
}
