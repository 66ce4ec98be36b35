package main

import (
	"fmt"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

func verifyCommand() *cobra.Command {
	var c client
	var samples, seed uint64
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that what is installed is what is wanted; exit status 1 if not",
		Long: `Prove that what is installed is what is wanted. Every live flow and group is compared with the compiled one, cookie
and text; and for a sample of packets the verdict of ofproto/trace is compared with one that is reached from the
Kubernetes objects alone. Each difference is printed with both sides. Exit status 1 if there is one.`,
		Example: "  twill verify\n  twill verify --samples 5000 --seed 42 -o json\n  twill verify --bundle report.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v inspect.Verification
			query := url.Values{"samples": {fmt.Sprint(samples)}, "seed": {fmt.Sprint(seed)}}
			if err := c.get(cmd.Context(), "", "/v1/verify", query, &v); err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), v, func(s screen) { verifyText(s, v) }); err != nil {
				return err
			}
			if n := v.Differences(); n > 0 {
				return fmt.Errorf("node %s: %d differences", v.Node, n)
			}
			return nil
		},
	}
	cmd.Flags().Uint64Var(&samples, "samples", 300, "packets to ask about, 0 for none; each costs about 1 ms")
	cmd.Flags().Uint64Var(&seed, "seed", 1, "which packets; the same seed asks about the same")
	c.flags(cmd)
	return cmd
}

func verifyText(s screen, v inspect.Verification) {
	for _, d := range slices.Concat(v.Flows, v.Groups) {
		owner := string(d.Owner)
		if owner == "" {
			owner = "nobody's"
		}
		s.put(s.bad(string(d.Kind))+" ", fmt.Sprintf("%s: %s", owner, d.What))
		if d.Wanted != "" {
			fmt.Fprintln(s, "  wanted  "+d.Wanted)
		}
		if d.Live != "" {
			fmt.Fprintln(s, "  live    "+d.Live)
		}
	}
	for _, d := range v.Verdicts {
		s.put(s.bad("verdict")+" ", d.What)
		s.put("  wanted  ", d.Expected)
		s.put("  live    ", d.Got)
		fmt.Fprintln(s, "  packet  "+d.Packet)
	}
	if v.Behind != "" {
		s.put("note: ", "the agent is behind, so a difference may be lawful for the moment: "+v.Behind)
	}
	if v.Ungrouped != "" {
		s.put("note: ", "groups were not compared: "+v.Ungrouped)
	}
	if v.Untold > 0 {
		s.put("note: ", fmt.Sprintf("%d packets could not be judged: %s", v.Untold, inspect.UntoldReason))
		for _, what := range v.UntoldPackets {
			s.put("  untold  ", what)
		}
		if more := v.Untold - len(v.UntoldPackets); more > 0 {
			s.put("  untold  ", fmt.Sprintf("%d more", more))
		}
	}
	asked := fmt.Sprintf("%d packets asked about, %d treated otherwise than the objects say", v.Sampled, len(v.Verdicts))
	if v.Untraced != "" {
		asked = "no packets asked about: " + v.Untraced
	}
	groups := fmt.Sprintf("%d differ", len(v.Groups))
	if v.Ungrouped != "" {
		groups = "not compared"
	}
	live := fmt.Sprintf("%d live", v.Live)
	if v.Learned > 0 {
		live += fmt.Sprintf(" (and %d that packets left, for session affinity)", v.Learned)
	}
	s.put("", fmt.Sprintf("node %s: %d flows wanted, %s, %d differ; %d groups wanted, %s; %s", v.Node, v.Wanted, live, len(v.Flows), v.WantedGroups, groups, asked))
}
