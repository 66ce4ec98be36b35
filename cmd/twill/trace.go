package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

// packetFlags declares what describes a packet.
func packetFlags(cmd *cobra.Command, q *inspect.Question) {
	f := cmd.Flags()
	f.StringVar(&q.Source, "source", "", "source address, if it is not the sender's own")
	f.StringVar(&q.Proto, "proto", "", "icmp (echo request), tcp, udp or sctp; empty is that of the Service, else icmp")
	f.Uint16Var(&q.Port, "port", 0, "destination port")
	f.Uint16Var(&q.SourcePort, "source-port", 0, "source port")
	f.IntVar(&q.Size, "size", 0, "length of the IP packet in bytes")
	f.BoolVar(&q.Reply, "reply", false, "the answer to that packet instead, from TO to FROM")
	f.StringVar(&q.Endpoint, "endpoint", "", "ADDRESS:PORT of the endpoint that the Service shall choose; empty takes the first that the bridge chooses")
	_ = cmd.RegisterFlagCompletionFunc("proto", cobra.FixedCompletions([]string{"icmp", "tcp", "udp", "sctp"}, cobra.ShellCompDirectiveNoFileComp))
}

const endpoints = `FROM and TO are pods (NAMESPACE/NAME), Services (service/NAMESPACE/NAME[:PORT]), nodes (node/NAME), the host of this node
(host), or addresses. A packet that leaves through the tunnel is followed to the node at its other end, if that node's
agent can be asked from here. What comes from outside to a node port or load balancer: FROM host with --source. The packet
is the first of a connection or, with --reply, the answer to it; its way through connection tracking is told for that.`

// locate is where a question begins: on which node, and who sends to whom there.
func (c *client) locate(ctx context.Context, q inspect.Question) (node string, _ inspect.Question, err error) {
	from, err := c.find(ctx, q.From)
	if err != nil {
		return "", q, fmt.Errorf("FROM %s: %w", q.From, err)
	}
	if strings.HasPrefix(q.From, servicePrefix) {
		q.From = from.Addresses[0].String()
	}
	if strings.HasPrefix(q.To, servicePrefix) {
		return from.agent, q, nil // every node knows it, and serves it for its own
	}
	to, err := c.find(ctx, q.To)
	if err != nil {
		return "", q, fmt.Errorf("TO %s: %w", q.To, err)
	}
	start := from.agent
	if strings.HasPrefix(q.From, "node/") {
		if q.Source == "" {
			q.From = "host" // of that node
		} else {
			start = to.agent // where the packet comes out of the tunnel
		}
	}
	if len(to.Addresses) > 0 && (to.agent != start || strings.HasPrefix(q.To, "node/")) {
		if q.To, err = sameFamily(q, from, to); err != nil {
			return "", q, err
		}
	}
	return start, q, nil
}

// found is a place, and the node whose agent knows it at first hand; empty for the nearest one.
type found struct {
	inspect.Place
	agent string
}

// find asks where a name is: the nearest agent first, then those of the other nodes.
func (c *client) find(ctx context.Context, name string) (found, error) {
	if name == "host" {
		return found{}, nil
	}
	if _, err := netip.ParseAddr(name); err == nil && !c.kube.used() {
		return found{}, nil
	}
	if c.kube.used() {
		return c.findInCluster(ctx, name)
	}
	here, err := c.findAt(ctx, "", name)
	if !unknownThere(err) || c.peerSockets == "" || c.offline.used() {
		if unknownThere(err) {
			err = fmt.Errorf("%w; if it is on another node, give its address, or use `kubectl twill`, which asks every node", err)
		}
		return here, err
	}
	var peers []string
	if err := c.get(ctx, "", "/v1/peers", nil, &peers); err != nil {
		return found{}, err
	}
	for _, node := range peers {
		if there, err := c.findAt(ctx, node, name); err == nil {
			return there, nil
		}
	}
	return found{}, err
}

// findAt asks one agent.
func (c *client) findAt(ctx context.Context, node, name string) (found, error) {
	var p inspect.Place
	if err := c.get(ctx, node, "/v1/locate", url.Values{"name": {name}}, &p); err != nil {
		return found{}, err
	}
	if p.Here {
		return found{p, node}, nil
	}
	return found{p, p.Node}, nil
}

// findInCluster asks the API server where a name is, and the agent there for the rest.
func (c *client) findInCluster(ctx context.Context, name string) (found, error) {
	nodes, err := c.kube.candidates(ctx, name)
	if err != nil {
		return found{}, err
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return found{agent: nodes[0]}, nil
	}
	return c.findAt(ctx, nodes[0], name)
}

// sameFamily picks the address of a place that the sender has an address of the same family for.
func sameFamily(q inspect.Question, from, to found) (string, error) {
	for _, a := range to.Addresses {
		if q.Source != "" {
			if s, err := netip.ParseAddr(q.Source); err == nil && s.Is4() == a.Is4() {
				return a.String(), nil
			}
			continue
		}
		if len(from.Addresses) == 0 {
			return a.String(), nil
		}
		for _, b := range from.Addresses {
			if a.Is4() == b.Is4() {
				return a.String(), nil
			}
		}
	}
	return "", fmt.Errorf("%s and %s have no addresses of one family", q.From, q.To)
}

// servicePrefix begins the name of a Service.
const servicePrefix = "service/"

// maxHops bounds how far a packet is followed; one that goes right takes two.
const maxHops = 4

// follow asks one node after the other, as the packet goes, until it stays or nobody can be asked. next tells
// where an answer says that it goes on. The error of a later hop is a note, not an error.
func follow[T any](ctx context.Context, c *client, path string, q inspect.Question, next func(T) (string, *inspect.Next)) (hops []T, note string, err error) {
	if q.Reply {
		return followReply(ctx, c, path, q, next)
	}
	node, q, err := c.locate(ctx, q)
	if err != nil {
		return nil, "", err
	}
	return followFrom(ctx, c, path, node, q, next)
}

func followFrom[T any](ctx context.Context, c *client, path, node string, q inspect.Question, next func(T) (string, *inspect.Next)) (hops []T, note string, err error) {
	if c.called == nil {
		c.called = map[string]string{}
	}
	for len(hops) < maxHops {
		var t T
		if err := c.get(ctx, node, path, q.Query(), &t); err != nil {
			if len(hops) == 0 {
				return nil, "", err
			}
			return hops, fmt.Sprintf("it goes on at node %s, which was not asked: %v", node, err), nil
		}
		hops = append(hops, t)
		here, n := next(t)
		c.called[here] = node
		switch {
		case n == nil:
			return hops, "", nil
		case c.offline.used() && n.Node != here:
			return hops, fmt.Sprintf("it goes on at node %s, which was not asked: what is looked at is of node %s only", n.Node, here), nil
		}
		node, q = c.named(n.Node), n.Question
	}
	return hops, fmt.Sprintf("given up after %d nodes", maxHops), nil
}

// onTrace tells where a packet goes on.
func onTrace(t inspect.Trace) (string, *inspect.Next) { return t.Node, t.Next }

// named is how the node of that name was asked before, so that it can be asked again; else the name itself.
func (c *client) named(node string) string {
	if as, known := c.called[node]; known {
		return as
	}
	return node
}

// followReply follows the packet itself first: what the answer looks like, and where it begins, follows from that.
func followReply[T any](ctx context.Context, c *client, path string, q inspect.Question, next func(T) (string, *inspect.Next)) (hops []T, note string, err error) {
	q.Reply = false
	there, note, err := follow(ctx, c, "/v1/trace", q, onTrace)
	if err != nil {
		return nil, "", err
	}
	last := there[len(there)-1]
	if last.Answer == nil {
		return nil, "", fmt.Errorf("there is no answer to %s: on node %s it is %s", last.What, last.Node, last.Verdict.Sentence)
	}
	back, more, err := followFrom(ctx, c, path, c.named(last.Answer.Node), last.Answer.Question, next)
	if err != nil {
		return nil, "", err
	}
	var notes []string
	if note != "" {
		notes = append(notes, "of the packet itself: "+note)
	}
	if more != "" {
		notes = append(notes, more)
	}
	if first := there[0]; first.Endpoint != "" {
		notes = append(notes, fmt.Sprintf("it answers %s, which %s sent to %s; the client sees it come from the address that it asked", first.What, first.Service, first.Endpoint))
	}
	return back, strings.Join(notes, "; "), nil
}

// traceResult is what `twill trace -o json` prints.
type traceResult struct {
	Hops    []inspect.Trace `json:"hops"`
	Verdict inspect.Verdict `json:"verdict"`
	Note    string          `json:"note,omitempty"`
}

func traceCommand() *cobra.Command {
	var c client
	var q inspect.Question
	var raw bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO",
		Short: "The way of one packet, table by table and node by node, with the object behind each step",
		Long: `The way of one packet, table by table and node by node, with the object behind each step. The verdict is the last
line. It is asked of the bridge as it is now (ofproto/trace); no packet is sent.

` + endpoints,
		Example: "  twill trace default/web-0 shop/db --proto tcp --port 5432\n  twill trace default/web-0 198.18.2.7 --raw\n  twill trace default/web-0 service/kube-system/kube-dns:dns\n  twill trace host node/worker-1 --source 203.0.113.9 --proto tcp --port 30080\n  twill trace node/worker-2 default/web-0 --source 198.18.2.7\n  twill trace default/web-0 shop/db --proto tcp --port 5432 --reply",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: c.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			q.From, q.To = args[0], args[1]
			hops, note, err := follow(cmd.Context(), &c, "/v1/trace", q, onTrace)
			if err != nil {
				return err
			}
			out := traceResult{Hops: hops, Verdict: hops[len(hops)-1].Verdict, Note: note}
			return c.print(cmd.OutOrStdout(), out, func(s screen) { traceText(s, out, raw) })
		},
	}
	packetFlags(cmd, &q)
	cmd.Flags().BoolVar(&raw, "raw", false, "add the text of ofproto/trace")
	c.flags(cmd)
	return cmd
}

func traceText(s screen, r traceResult, raw bool) {
	for i, t := range r.Hops {
		for _, line := range wrap(fmt.Sprintf("%s on node %s", t.What, t.Node), s.width, s.width == 0) {
			fmt.Fprintln(s, s.bold(line))
		}
		columns := columnsOf(s, t.Steps)
		for _, step := range t.Steps {
			columns.put(s, step)
			choicesText(s, step.Choices)
		}
		if i+1 < len(r.Hops) || raw {
			s.put("  datapath   ", t.Datapath)
		}
		if raw {
			fmt.Fprintf(s, "\n%s\n\n", s.dim(strings.TrimSpace(t.Raw)))
		}
	}
	if r.Note != "" {
		s.put("note: ", r.Note)
	}
	if first := r.Hops[0]; first.Remembered && len(r.Hops) > 1 {
		s.put("note: ", "session affinity: this client had the endpoint "+first.Endpoint+" before")
	}
	last := r.Hops[len(r.Hops)-1]
	text := s.good
	if slices.Contains([]string{inspect.Dropped, inspect.Rejected, inspect.Lost}, r.Verdict.Outcome) {
		text = s.bad
	}
	verdict := r.Verdict.Sentence
	if len(r.Hops) > 1 {
		verdict += " on node " + last.Node
	}
	for _, line := range wrap(verdict, s.width, s.width == 0) {
		fmt.Fprintln(s, text(line))
	}
}

// stepColumns are the widths of the columns of a trace.
type stepColumns struct{ table, owner int }

// leastSentence is how many columns a sentence gets at least; a longer owner has a line of its own.
const leastSentence = 40

// columnsOf looks at what has to fit.
func columnsOf(s screen, steps []inspect.Step) stepColumns {
	c := stepColumns{table: 9, owner: 16}
	for _, step := range steps {
		table, owner := stepHead(step)
		c.table, c.owner = max(c.table, len(table)), max(c.owner, len(owner))
	}
	if s.width > 0 {
		c.owner = max(16, min(c.owner, s.width-leastSentence-c.table-6))
	}
	return c
}

func (c stepColumns) put(s screen, step inspect.Step) {
	table, owner := stepHead(step)
	head := fmt.Sprintf("  %-*s  ", c.table, table)
	if s.width > 0 && len(owner) > c.owner {
		fmt.Fprintln(s, head+owner)
		head, owner = strings.Repeat(" ", len(head)), ""
	}
	s.put(fmt.Sprintf("%s%-*s  ", head, c.owner, owner), step.Sentence)
}

// stepHead is where a step happens and whose it is.
func stepHead(step inspect.Step) (table, owner string) {
	table, owner = step.Table, cmp.Or(string(step.Owner), "-")
	if step.Large {
		table = "  (large) " + table
	}
	switch step.State {
	case inspect.Alien:
		owner = "NOT TWILL'S"
	case inspect.Altered:
		owner += " CHANGED"
	}
	return table, owner
}

// shownChoices is how many endpoints are listed.
const shownChoices = 8

// choicesText lists the endpoints that a group may choose; the one that is followed always.
func choicesText(s screen, list []inspect.Choice) {
	hidden := 0
	for i, c := range list {
		if i >= shownChoices && !c.Followed {
			hidden++
			continue
		}
		mark := "    or "
		if c.Followed {
			mark = "    -> "
		}
		text := fmt.Sprintf("%4.1f %%  %s", 100*c.Share, c.Endpoint)
		if c.Where != "" {
			text += " (" + c.Where + ")"
		}
		s.put(mark, text)
	}
	if hidden > 0 {
		s.put("    or ", fmt.Sprintf("%d more", hidden))
	}
}
