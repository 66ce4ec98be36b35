package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// whyResult is what `twill why -o json` prints: the answer of the node that decided.
type whyResult struct {
	inspect.Why
	// Path lists the nodes that the packet went through.
	Path []string `json:"path"`
	Note string   `json:"note,omitempty"`
	// Endpoints are the answers for all endpoints of the Service that is asked about, if it has several.
	Endpoints []endpointResult `json:"endpoints,omitempty"`
}

// endpointResult is what becomes of the packet if its Service sends it to this endpoint.
type endpointResult struct {
	inspect.Choice
	Allowed  bool   `json:"allowed"`
	Sentence string `json:"sentence"`
}

// mostEndpoints is of how many endpoints `why` asks the way.
const mostEndpoints = 16

// refused is true for a question that the agent finds wrong.
func refused(err error) bool {
	var r refusal
	return errors.As(err, &r) && r.code == http.StatusBadRequest
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
		Example: "  twill why default/web-0 shop/db --proto tcp --port 5432\n  twill why default/web-0 198.18.2.7\n  twill why default/web-0 service/shop/db --port 5432\n  twill why default/web-0 shop/db --source 203.0.113.9",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: c.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.From, q.To = args[0], args[1]
			out, err := ask(cmd.Context(), &c, q)
			if err != nil {
				return err
			}
			if out, err = eachEndpoint(cmd.Context(), &c, q, out); err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), out, func(s screen) { whyText(s, out) }); err != nil {
				return err
			}
			if !out.Allowed {
				return errDropped{out.What + " is " + cmp.Or(map[string]string{inspect.Rejected: inspect.Rejected}[out.Outcome], inspect.Dropped)}
			}
			return nil
		},
	}
	packetFlags(cmd, &q)
	c.flags(cmd)
	return cmd
}

// ask follows a packet to where it is decided upon.
func ask(ctx context.Context, c *client, q inspect.Question) (whyResult, error) {
	hops, note, err := follow(ctx, c, "/v1/why", q, func(w inspect.Why) (string, *inspect.Next) { return w.Node, w.Next })
	if err != nil {
		return whyResult{}, err
	}
	out := whyResult{Why: hops[len(hops)-1], Note: note}
	causes := []flows.Owner{}
	var notes []string
	for i, h := range hops {
		out.Path = append(out.Path, h.Node)
		notes = append(notes, h.Notes...)
		for _, c := range h.Causes {
			if !slices.Contains(causes, c) {
				causes = append(causes, c)
			}
		}
		if len(h.Choices) > 0 {
			out.Choices = h.Choices
		}
		if h.Service != "" {
			out.Service, out.Endpoint, out.Remembered, out.Sends = h.Service, h.Endpoint, h.Remembered, h.Sends
		}
		if h.Sends != "" && i < len(hops)-1 {
			out.Because = h.Sends + "; " + out.Because
		}
	}
	out.What, out.Causes, out.Notes = hops[0].What, causes, notes
	if out.Allowed && len(hops) > 1 {
		out.Remedy = inspect.Unless(causes)
	}
	return out, nil
}

// eachEndpoint asks for the other endpoints too, where a Service chooses among several. The answer is that of the
// first that does not get the packet, else the one that there is.
func eachEndpoint(ctx context.Context, c *client, q inspect.Question, first whyResult) (whyResult, error) {
	if len(first.Choices) < 2 || q.Endpoint != "" || q.Reply {
		return first, nil
	}
	out := first
	var list []endpointResult
	for _, choice := range first.Choices {
		one := first
		if !choice.Followed {
			if len(list) >= mostEndpoints {
				continue
			}
			var err error
			again := q
			again.Endpoint = choice.Endpoint
			if one, err = ask(ctx, c, again); refused(err) {
				continue // a hash of the client decides: it gets that one always
			} else if err != nil {
				return first, err
			}
		}
		choice.Followed = false
		list = append(list, endpointResult{choice, one.Allowed, one.Sentence})
		if out.Allowed && !one.Allowed {
			out = one
		}
	}
	if len(list) > 1 {
		out.Endpoints = list
	}
	if n := len(first.Choices) - len(list); n > 0 && len(list) > 1 {
		out.Notes = append(out.Notes, fmt.Sprintf("%d more endpoints were not asked about; --endpoint asks for one", n))
	}
	return out, nil
}

func whyText(s screen, r whyResult) {
	word := s.good("allowed")
	size := len("allowed")
	if !r.Allowed {
		outcome := "dropped"
		if r.Outcome == inspect.Rejected {
			outcome = r.Outcome
		}
		word, size = s.bad(outcome), len(outcome)
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
	for _, e := range r.Endpoints {
		word, size := s.good("allowed"), len("allowed")
		if !e.Allowed {
			word, size = s.bad("dropped"), len("dropped")
		}
		text := fmt.Sprintf("%4.1f %%  %s", 100*e.Share, e.Choice.Endpoint)
		if e.Where != "" {
			text += " (" + e.Where + ")"
		}
		s.putColoured("         "+word+"  ", 9+size+2, text+": "+e.Sentence)
	}
	for _, n := range r.Notes {
		s.put("note     ", n)
	}
	if r.Note != "" {
		s.put("note     ", r.Note)
	}
}
