package main

import (
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

func flowsCommand() *cobra.Command {
	var c client
	var pod, node, service, policy, owner string
	var raw, drops bool
	cmd := &cobra.Command{
		Use:     "flows",
		Short:   "The live flow table in words, by the object each flow exists for",
		Example: "  twill flows --pod default/web-0\n  twill flows --node worker-2 --raw\n  twill flows --service kube-system/kube-dns\n  twill flows --policy shop/db\n  twill flows --drops",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case pod != "" && strings.Count(pod, "/") != 1:
				return fmt.Errorf("--pod %q: use NAMESPACE/NAME", pod)
			case pod != "":
				owner = "pod/" + pod
			case service != "" && strings.Count(service, "/") != 1 && !strings.Contains(service, ":"):
				return fmt.Errorf("--service %q: use NAMESPACE/NAME, or NAMESPACE/NAME:PORT for one of its ports", service)
			case service != "":
				owner = "service/" + service
			case node != "":
				owner = "node/" + node
			case strings.Contains(policy, "/"):
				owner = "networkpolicy/" + policy
			case policy != "":
				owner = "clusternetworkpolicy/" + policy
			}
			var list []agent.LiveFlow
			if err := c.get(cmd.Context(), "/v1/flows", url.Values{"owner": {owner}}, &list); err != nil {
				return err
			}
			if drops {
				list = slices.DeleteFunc(list, func(f agent.LiveFlow) bool { return f.Drop == "" })
			}
			if len(list) == 0 && owner != "" {
				return fmt.Errorf("this node has no flow of %s; see `twill status` for the pods and peers it knows", owner)
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) { flowsText(w, list, raw) })
		},
	}
	cmd.Flags().StringVar(&pod, "pod", "", "flows of one pod, NAMESPACE/NAME")
	cmd.Flags().StringVar(&node, "node", "", "flows of one node")
	cmd.Flags().StringVar(&service, "service", "", "flows of one Service, NAMESPACE/NAME[:PORT]")
	cmd.Flags().StringVar(&policy, "policy", "", "flows of one NetworkPolicy, NAMESPACE/NAME, or ClusterNetworkPolicy, NAME, with the conditions it shares")
	cmd.Flags().StringVar(&owner, "owner", "", "flows of one owner, as printed")
	cmd.Flags().BoolVar(&drops, "drops", false, "only flows that drop")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the line of ovs-ofctl below each flow")
	cmd.MarkFlagsMutuallyExclusive("pod", "node", "service", "policy", "owner")
	c.flags(cmd)
	return cmd
}

func flowsText(w io.Writer, list []agent.LiveFlow, raw bool) {
	slices.SortStableFunc(list, func(a, b agent.LiveFlow) int { return strings.Compare(string(a.Owner), string(b.Owner)) })
	last := ""
	for i, f := range list {
		owner := string(f.Owner)
		if owner == "" {
			owner = "NOT TWILL'S"
		}
		if i == 0 || owner != last {
			fmt.Fprintln(w, owner)
			last = owner
		}
		fmt.Fprintf(w, "  %-9s %8d packets  %s\n", f.Table, f.Packets, f.Sentence)
		if raw {
			fmt.Fprintf(w, "  %-9s %8s          %s\n", "", "", f.Raw)
		}
	}
}
