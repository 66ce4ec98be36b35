package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

// whyResult is what `twill why -o json` prints: the answer of the node that decided.
type whyResult struct {
	inspect.Why
	// Path lists the nodes that the packet went through.
	Path []string `json:"path"`
	Note string   `json:"note,omitempty"`
}

// errDropped is the exit status of a `why` whose packet does not arrive.
type errDropped struct{ what string }

func (e errDropped) Error() string { return e.what }

func whyCommand() *cobra.Command {
	var c client
	var q inspect.Question
	cmd := &cobra.Command{
		Use:   "why FROM TO",
		Short: "Allowed or dropped, because of which object, where, and what would change it; exit status 3 if dropped",
		Long: `Allowed or dropped, because of which object, where, and what would change it. It tells what the bridge does now, not
what was wanted; where the two differ, it says so.

` + endpoints + `

Exit status 0 if the packet arrives, 3 if it is dropped, 1 if the question could not be answered.`,
		Example: "  twill why default/web-0 shop/db --proto tcp --port 5432\n  twill why default/web-0 198.18.2.7\n  twill why default/web-0 shop/db --source 203.0.113.9",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: c.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.From, q.To = args[0], args[1]
			hops, note, err := follow(cmd.Context(), &c, "/v1/why", q, func(w inspect.Why) *inspect.Next { return w.Next })
			if err != nil {
				return err
			}
			out := whyResult{Why: hops[len(hops)-1], Note: note}
			for i, h := range hops {
				out.Path = append(out.Path, h.Node)
				if i < len(hops)-1 {
					out.Notes = append(h.Notes, out.Notes...)
					out.Causes = append(h.Causes, out.Causes...)
				}
			}
			if err := c.print(cmd.OutOrStdout(), out, func(s screen) { whyText(s, out) }); err != nil {
				return err
			}
			if !out.Allowed {
				return errDropped{out.What + " is dropped"}
			}
			return nil
		},
	}
	packetFlags(cmd, &q)
	c.flags(cmd)
	return cmd
}

func whyText(s screen, r whyResult) {
	word := s.good("allowed")
	size := len("allowed")
	if !r.Allowed {
		word, size = s.bad("dropped"), len("dropped")
	}
	s.putColoured(word+"  ", size+2, r.What)
	s.put("because  ", r.Because)
	where := "node " + r.Node
	if r.Table != "" {
		where += ", table " + r.Table
	}
	if r.Owner != "" {
		where += ", a flow of " + string(r.Owner)
	}
	if len(r.Path) > 1 {
		where += fmt.Sprintf("; it came from node %s through the tunnel", r.Path[len(r.Path)-2])
	}
	s.put("where    ", where)
	s.put("verdict  ", r.Sentence)
	s.put("change   ", r.Remedy)
	for _, n := range r.Notes {
		s.put("note     ", n)
	}
	if r.Note != "" {
		s.put("note     ", r.Note)
	}
}
