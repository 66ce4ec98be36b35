package main

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

func reportCommand() *cobra.Command {
	var c client
	var file string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "One archive with all that the offline commands need, without secrets",
		Long: `One archive with all that the offline commands need, without secrets: flows, groups, OVSDB, the objects that the
agent works with, status, settings, log, a summary of conntrack. Read it with --bundle FILE of the other commands.`,
		Example: "  twill report -f node-1.tar.gz\n  twill flows --bundle node-1.tar.gz --drops\n  twill why default/web-0 shop/db --bundle node-1.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := c.fetch(cmd.Context(), "", "/v1/report", nil)
			if err != nil {
				return err
			}
			a, err := inspect.ReadArchive(bytes.NewReader(body))
			if err != nil {
				return fmt.Errorf("the agent's report cannot be read, perhaps it is of another version: %w", err)
			}
			if file == "-" {
				_, err := cmd.OutOrStdout().Write(body)
				return err
			}
			if file == "" {
				file = fmt.Sprintf("twill-report-%s-%s.tar.gz", a.Meta.Node, time.Now().UTC().Format("20060102T150405Z"))
			}
			if err := os.WriteFile(file, body, 0o600); err != nil {
				return err
			}
			for _, part := range sortedKeys(a.Meta.Missing) {
				fmt.Fprintf(cmd.ErrOrStderr(), "without %s: %s\n", part, a.Meta.Missing[part])
			}
			return c.print(cmd.OutOrStdout(), map[string]any{"file": file, "bytes": len(body), "missing": a.Meta.Missing}, func(s screen) {
				fmt.Fprintf(s, "%s (%d bytes)\n", file, len(body))
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "where to write it, - for standard output; empty names it after node and time")
	c.flags(cmd)
	return cmd
}
