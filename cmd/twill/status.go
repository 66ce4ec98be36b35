package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

func statusCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "What this node's agent has, and what is wrong; exit status 1 if it is not ready",
		Example: "  twill status\n  twill status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s agent.Status
			if err := c.get(cmd.Context(), "/v1/status", nil, &s); err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), s, func(w io.Writer) { statusText(w, s) }); err != nil {
				return err
			}
			if !s.Ready {
				return fmt.Errorf("node %s is not ready", s.Node)
			}
			return nil
		},
	}
	c.flags(cmd)
	return cmd
}

func statusText(out io.Writer, s agent.Status) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	line := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	state := "ready"
	if !s.Ready {
		state = "NOT READY"
	}
	line("node", "%s, %s", s.Node, state)
	line("versions", "Twill %s, %s, datapath %s, bridge %s", s.Version, s.OVS, s.Datapath, s.Bridge)
	line("tunnel", "%s, not encrypted", s.Tunnel)
	line("tunnel address", "%s", s.Why)
	line("MTU", "%d bytes for pods, %d on %s", s.MTU, s.LinkMTU, s.Interface)
	for _, r := range s.Addresses.Ranges {
		line("podCIDR", "%s: %d addresses used, %d resting, %d free", r.CIDR, r.Used, r.Cooling, r.Free)
	}
	line("flows", "%d; last change added %d, deleted %d in %.0f ms for %s", s.Flows, s.Last.Added, s.Last.Deleted, s.Last.TookMS, s.Last.Cause)
	line("services", "%d ports, %d of them without an endpoint", s.Services, len(s.WithoutEndpoints))
	for _, o := range s.WithoutEndpoints {
		line("", "%s", o)
	}
	line("pods", "%d", len(s.Pods))
	for _, p := range s.Pods {
		line("", "%s  %s  port %s (%d)", p.Owner, addresses(p), p.Port, p.OFPort)
	}
	line("peers", "%d", len(s.Peers))
	for _, p := range s.Peers {
		switch {
		case p.Reachable == nil:
			line("", "%s  %s  not yet probed %s", p.Node, p.Tunnel, p.Problem)
		case *p.Reachable:
			line("", "%s  %s  up, %.2f ms", p.Node, p.Tunnel, p.RTTMS)
		default:
			line("", "%s  %s  DOWN: %s", p.Node, p.Tunnel, p.Problem)
		}
	}
	for _, p := range s.Problems {
		line("problem", "%s", p)
	}
}

func addresses(p agent.PodStatus) string {
	var out []string
	for _, a := range p.Addresses {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}
