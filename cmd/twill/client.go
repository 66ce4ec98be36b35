package main

import (
	"context"
	"encoding/json"
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

// client asks the agent of this node.
type client struct {
	socket string
	output string
}

// flags declares what all of the operator's commands have.
func (c *client) flags(cmd *cobra.Command) {
	socket := os.Getenv(agent.EnvPrefix + "ADMIN_SOCKET")
	if socket == "" {
		socket = agent.DefaultAdminSocket
	}
	cmd.Flags().StringVar(&c.socket, "admin-socket", socket, "socket of the agent")
	cmd.Flags().StringVarP(&c.output, "output", "o", "text", "text, json or yaml")
}

// askTimeout bounds one question to the agent.
const askTimeout = 15 * time.Second

// get asks for a path and decodes the answer.
func (c *client) get(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	h := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := h.Do(req)
	if err != nil {
		return fmt.Errorf("no agent answers at %s: %w; is it running on this node, are you root, is --admin-socket right?", c.socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("the agent's answer broke off: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent says: %s", strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the agent's answer is of another version (%w); use the twill of the agent's image", err)
	}
	return nil
}

// print writes v as the user wants it; text is what it looks like in words.
func (c *client) print(w io.Writer, v any, text func(io.Writer)) error {
	switch c.output {
	case "text":
		text(w)
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
