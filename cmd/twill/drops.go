package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

func dropsCommand() *cobra.Command {
	var c client
	var again watch
	var all bool
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "What was dropped, by reason and by the object on whose behalf, with the last packets",
		Long: `What was dropped since the flows were installed, by reason and by the object on whose behalf, and below each the
packets of the last ten seconds, at most five: protocol, addresses and ports of the packet for which the datapath made a flow
that drops, and how many more that flow has dropped. They are read off the datapath's flows when asked for; no packet waits
for it. The kernel's datapath keeps of a packet only what the flow looks at: addresses may be ranges there, ports unknown.`,
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

// lastText is a packet that was dropped: "tcp 198.18.1.2:40000 → 198.18.1.77:80 from pod default/web-0, and 3 like it".
func lastText(x inspect.DroppedPacket) string {
	end := func(address string, port uint16) string {
		switch {
		case port == 0:
			return address
		case strings.Contains(address, ":"):
			address = "[" + address + "]"
		}
		return fmt.Sprintf("%s:%d", address, port)
	}
	text := fmt.Sprintf("%s %s → %s from %s", x.Protocol, end(x.Source, x.SourcePort), end(x.Destination, x.DestinationPort), x.From)
	if x.More > 0 {
		text += fmt.Sprintf(", and %d like it", x.More)
	}
	return text
}

func dropsText(s screen, list []inspect.Drop, before map[string]inspect.Drop, took time.Duration, all bool) {
	shown := false
	for _, d := range list {
		if d.Packets == 0 && len(d.Last) == 0 && !all {
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
		for _, x := range d.Last {
			when := "once"
			if x.More > 0 {
				when = fmt.Sprintf("%.1f s ago", x.Ago)
			}
			s.put(fmt.Sprintf("%29s  ", when), lastText(x))
		}
	}
	if !shown {
		fmt.Fprintln(s, "nothing was dropped since the flows were installed")
	}
}
