package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/preview"
	"github.com/twill-net/twill/agent/source"
)

// errChanges is the exit status of a preview that found something.
type errChanges struct{ closes bool }

func (e errChanges) Error() string { return "verdicts would change" }

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Policies before they are applied", Example: "  twill policy preview -f deny.yaml"}
	cmd.AddCommand(previewCommand())
	return cmd
}

func previewCommand() *cobra.Command {
	var c client
	var files []string
	var r preview.Request
	cmd := &cobra.Command{
		Use:   "preview -f FILE",
		Short: "Which connections would be dropped or allowed if these policies were applied; nothing is",
		Long: `Which connections would be dropped that pass now, and which would pass that are dropped, if these NetworkPolicies
and ClusterNetworkPolicies were applied or deleted. Nothing is applied. The whole cluster is looked at, whichever node
answers: every pod, every node, the ranges that rules mention and the rest of the world, with all ports. A file with
something in it that the API server would refuse is an error.

--bundle and --manifests answer without an agent: from a report, or from a directory with the objects of the cluster
(` + "`kubectl get nodes,namespaces,pods,networkpolicies -A -o yaml > DIR/cluster.yaml`" + `).

Exit status 0 if no verdict changes, 4 if only more is allowed, 5 if anything that passes now would be dropped, 1 if the
question could not be answered.`,
		Example: "  twill policy preview -f deny.yaml\n  kubectl twill policy preview -f deny.yaml --on worker-1\n  twill policy preview --delete networkpolicy/shop/db -o json\n  kustomize build . | twill policy preview -f - --manifests cluster/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files)+len(r.Delete) == 0 {
				return errors.New("nothing to preview: name manifests with -f, or policies with --delete")
			}
			for _, name := range files {
				text, err := readAll(name)
				if err != nil {
					return fmt.Errorf("-f %s: %w", name, err)
				}
				r.Files = append(r.Files, preview.File{Name: name, Text: text})
			}
			request, err := r.Encode()
			if err != nil {
				return err
			}
			node, err := c.anyNode(cmd.Context())
			if err != nil {
				return err
			}
			var out preview.Result
			if err := c.get(cmd.Context(), node, preview.Path, url.Values{"request": {request}}, &out); err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), out, func(s screen) { previewText(s, out) }); err != nil {
				return err
			}
			if len(out.Changes) > 0 {
				return errChanges{out.Closes()}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&files, "filename", "f", nil, "file of manifests to be applied, - for standard input; may be given several times")
	f.StringArrayVar(&r.Delete, "delete", nil, "policy to be deleted: networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME; may be given several times")
	f.StringVarP(&r.Namespace, "namespace", "n", "default", "namespace of NetworkPolicies that name none")
	c.flags(cmd)
	c.offline.objectsOnly = true
	return cmd
}

// anyNode is a node whose agent can be asked what every agent knows: the plugin takes the first.
func (c *client) anyNode(ctx context.Context) (string, error) {
	if c.offline.used() || !c.kube.plugin || c.kube.on != "" {
		return "", nil
	}
	nodes, err := c.kube.nodes(ctx)
	if err != nil {
		return "", err
	}
	return nodes[0], nil
}

// objects answers previews, from the objects in a report or in a directory of manifests.
func (o *offline) objects() (http.RoundTripper, error) {
	mux := http.NewServeMux()
	answer := func(objects preview.Objects) (http.RoundTripper, error) {
		preview.Register(mux, func() (preview.Objects, error) { return objects, nil })
		return inProcess{mux}, nil
	}
	if o.bundle == "" {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		s, err := source.ReadDirectory(o.manifests, silent)
		if err != nil {
			return nil, fmt.Errorf("--manifests: %w", err)
		}
		return answer(preview.ObjectsOf(s))
	}
	a, err := o.archive()
	if err != nil {
		return nil, err
	}
	data, err := a.Objects()
	var objects preview.Objects
	if err == nil {
		err = json.Unmarshal(data, &objects)
	}
	if err != nil {
		return nil, fmt.Errorf("--bundle %s: %w", o.bundle, err)
	}
	return answer(objects)
}

func previewText(s screen, r preview.Result) {
	closes := 0
	for _, c := range r.Changes {
		word := s.good("opens ")
		if c.Before.Allowed {
			word = s.bad("closes")
			closes++
		}
		s.putColoured(word+"  ", len("closes  "), c.String())
	}
	for _, n := range r.Notes {
		s.put("note    ", n)
	}
	s.put("", fmt.Sprintf("closes: %d, opens: %d; looked at pods: %d, nodes: %d, ranges outside: %d, all ports; nothing was applied",
		closes, len(r.Changes)-closes, r.Pods, r.Nodes, r.Ranges))
}
