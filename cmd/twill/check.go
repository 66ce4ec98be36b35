package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

func checkCommand() *cobra.Command {
	var c client
	var cfg agent.Config
	var file string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Can this node carry Twill, and does it; exit status 1 if something is wrong",
		Long: `Can this node carry Twill, and does it. Run it before installation with the settings that the agent will have, and
afterwards whenever something is odd. It changes nothing. Each failure is one line with its remedy. Exit status 1 if
there is one.`,
		Example: "  twill check --cluster-cidr 10.244.0.0/16\n  twill check --config /etc/twill/agent.yaml -o json",
		Args:    cobra.NoArgs,
	}
	cfg.Flags(cmd.Flags())
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "YAML file with values for these flags")
	f.StringVarP(&c.output, "output", "o", "text", "text, json or yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := agent.Load(cmd.Flags(), file, os.LookupEnv); err != nil {
			return err
		}
		c.socket = cfg.AdminSocket
		var status *agent.Status
		ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
		defer cancel()
		var s agent.Status
		if c.get(ctx, "", "/v1/status", nil, &s) == nil { // before installation there is none
			status = &s
		}
		found, err := agent.Check(cmd.Context(), cfg, status, "/proc")
		if err != nil {
			return err
		}
		if err := c.print(cmd.OutOrStdout(), found, func(w screen) { checkText(w, found) }); err != nil {
			return err
		}
		failed := 0
		for _, x := range found {
			if x.Result == agent.CheckFailed {
				failed++
			}
		}
		if failed > 0 {
			return fmt.Errorf("%d of %d checks failed", failed, len(found))
		}
		return nil
	}
	return cmd
}

func checkText(s screen, found []agent.Finding) {
	for _, x := range found {
		paint, text := s.dim, x.Detail
		switch x.Result {
		case agent.CheckOK:
			paint = s.good
		case agent.CheckFailed:
			paint, text = s.bad, x.Detail+"; do: "+x.Remedy
		}
		s.putColoured(paint(fmt.Sprintf("%-7s", x.Result))+fmt.Sprintf(" %-12s ", x.Check), 21, text)
	}
}
