package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

func dropsCommand() *cobra.Command {
	var c client
	var again watch
	var all bool
	cmd := &cobra.Command{
		Use:     "drops",
		Short:   "What was dropped, by reason and by the object on whose behalf",
		Example: "  twill drops\n  twill drops --watch --interval 1s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			before := map[string]inspect.Drop{}
			return again.run(cmd.Context(), func(took time.Duration) error {
				var list []inspect.Drop
				if err := c.get(cmd.Context(), "", "/v1/drops", nil, &list); err != nil {
					return err
				}
				if len(list) == 0 {
					return fmt.Errorf("the bridge holds no flow that drops, so none of ours: `twill status` says what the agent waits for")
				}
				err := c.print(cmd.OutOrStdout(), list, func(s screen) { dropsText(s, list, before, took, all) })
				for _, d := range list {
					before[string(d.Reason)+" "+string(d.Owner)] = d
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also reasons for which nothing was dropped yet")
	again.flags(cmd)
	c.flags(cmd)
	return cmd
}

func dropsText(s screen, list []inspect.Drop, before map[string]inspect.Drop, took time.Duration, all bool) {
	shown := false
	for _, d := range list {
		if d.Packets == 0 && !all {
			continue
		}
		if !shown {
			fmt.Fprintln(s, s.bold(fmt.Sprintf("%8s %9s %10s  %s", "packets", "bytes", "rate", "reason, for whom, and what it means")))
			shown = true
		}
		was := before[string(d.Reason)+" "+string(d.Owner)]
		owner := string(d.Owner)
		if owner == "" {
			owner = "not Twill's"
		}
		s.put(fmt.Sprintf("%8s %9s %10s  ", count(d.Packets), count(d.Bytes), rate(was.Packets, d.Packets, took)),
			fmt.Sprintf("%s, %s: %s", d.Reason, owner, d.Sentence))
	}
	if !shown {
		fmt.Fprintln(s, "nothing was dropped since the flows were installed")
	}
}
