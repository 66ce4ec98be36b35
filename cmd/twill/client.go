package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent"
)

// client asks agents: that of this node at its socket, those of other nodes where their sockets are at hand,
// all of a cluster through the API server, or none but a report or a saved dump.
type client struct {
	socket, peerSockets string
	output              string
	offline             offline
	kube                kube
	called              map[string]string // how the node of that name was asked: empty is the nearest
}

// flags declares what all of the operator's commands have.
func (c *client) flags(cmd *cobra.Command) {
	socket := os.Getenv(agent.EnvPrefix + "ADMIN_SOCKET")
	if socket == "" {
		socket = agent.DefaultAdminSocket
	}
	f := cmd.Flags()
	f.StringVar(&c.socket, "admin-socket", socket, "socket of the agent")
	f.StringVar(&c.peerSockets, "peer-sockets", os.Getenv(agent.EnvPrefix+"PEER_SOCKETS"), "sockets of other nodes' agents, {node} stands for the node's name; for labs")
	f.StringVarP(&c.output, "output", "o", "text", "text, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	c.kube.flags(cmd)
	c.offline.flags(cmd)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		c.kube.plugin = cmd.Root().Annotations[cobra.CommandDisplayNameAnnotation] != "" && !c.offline.used()
		switch c.output {
		case "text", "json", "yaml":
			return c.offline.check()
		}
		return fmt.Errorf("--output %q: use text, json or yaml", c.output)
	}
}

// askTimeout bounds one question to an agent.
const askTimeout = 30 * time.Second

// refusal is an agent's answer that is an error.
type refusal struct {
	code int
	text string
}

func (r refusal) Error() string { return r.text }

// unknownThere is true for a name that the asked node does not know.
func unknownThere(err error) bool {
	var r refusal
	return errors.As(err, &r) && r.code == http.StatusNotFound
}

// get asks the agent of a node for a path and decodes the answer. An empty node is the one we are on, the one
// that --on names, or the one that the report is of.
func (c *client) get(ctx context.Context, node, path string, query url.Values, into any) error {
	body, err := c.fetch(ctx, node, path, query)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the agent's answer is of another version (%w); use the twill of the agent's image", err)
	}
	return nil
}

// fetch is get without decoding.
func (c *client) fetch(ctx context.Context, node, path string, query url.Values) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	way, err := c.way(ctx, node)
	if err != nil {
		return nil, err
	}
	target := "http://agent" + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	resp, err := way.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("the agent's answer broke off: %w", err)
	}
	text := strings.TrimSpace(string(body))
	switch {
	case resp.StatusCode == http.StatusOK && len(body) == 0:
		return nil, errors.New("the agent gave an empty answer; its log says why")
	case resp.StatusCode == http.StatusOK:
		return body, nil
	case text == "404 page not found":
		return nil, fmt.Errorf("the agent does not know %s: it is of another version; use the twill of the agent's image", path)
	}
	return nil, refusal{resp.StatusCode, text}
}

// way is how the agent of a node is reached.
func (c *client) way(ctx context.Context, node string) (http.RoundTripper, error) {
	switch {
	case c.offline.used():
		return c.offline.way(ctx, node)
	case c.kube.used():
		return c.kube.way(ctx, node)
	case node == "":
		return socketWay(c.socket), nil
	case c.peerSockets != "":
		return socketWay(strings.ReplaceAll(c.peerSockets, "{node}", node)), nil
	}
	return nil, elsewhere{node}
}

// elsewhere is a node whose agent cannot be reached from here.
type elsewhere struct{ node string }

func (e elsewhere) Error() string {
	return fmt.Sprintf("the agent of node %s cannot be asked from this node: run twill there, or `kubectl twill` on a workstation", e.node)
}

type socketWay string

func (s socketWay) RoundTrip(req *http.Request) (*http.Response, error) {
	t := http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", string(s))
	}}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("no agent answers at %s: %w; is it running on this node, are you root, is --admin-socket right? `twill check` looks at the node without an agent", string(s), err)
	}
	return resp, nil
}

// print writes v as the user wants it; text is what it looks like in words.
func (c *client) print(w io.Writer, v any, text func(screen)) error {
	switch c.output {
	case "text":
		text(newScreen(w))
		return nil
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		out, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	return fmt.Errorf("--output %q: use text, json or yaml", c.output)
}

// names completes the names of this node's pods and peers, as far as an agent tells them.
func (c *client) names(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var s agent.Status
	if len(args) > 1 || c.get(cmd.Context(), "", "/v1/status", nil, &s) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out := []string{"host"}
	for _, p := range s.Pods {
		out = append(out, p.Namespace+"/"+p.Name)
	}
	for _, p := range s.Peers {
		out = append(out, "node/"+p.Node)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
