package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
)

// flowsOptions are the flags of `twill flows`.
type flowsOptions struct {
	pod, node, service, policy, owner, table string
	raw, drops                               bool
}

// filter turns the flags that name an object into the owner of its flows.
func (o flowsOptions) filter() (string, error) {
	switch {
	case o.pod != "" && strings.Count(o.pod, "/") != 1:
		return "", fmt.Errorf("--pod %q: use NAMESPACE/NAME", o.pod)
	case o.pod != "":
		return "pod/" + o.pod, nil
	case o.service != "" && strings.Count(o.service, "/") != 1:
		return "", fmt.Errorf("--service %q: use NAMESPACE/NAME, or NAMESPACE/NAME:PORT for one of its ports", o.service)
	case o.service != "":
		return "service/" + o.service, nil
	case strings.Contains(o.policy, "/"):
		return "networkpolicy/" + o.policy, nil
	case o.policy != "":
		return "clusternetworkpolicy/" + o.policy, nil
	}
	if o.node != "" {
		return "node/" + o.node, nil
	}
	return o.owner, nil
}

func flowsCommand() *cobra.Command {
	var c client
	var o flowsOptions
	var again watch
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "The live flow table in words, by the object each flow exists for",
		Long: `The live flow table in words, by the object each flow exists for: what it matches, what it does, how many
packets and bytes it has seen. Flows that nobody here asks for come first, as ALIEN. Exit status 1 if a name was
given and has no flows.`,
		Example: "  twill flows --pod default/web-0\n  twill flows --table route --raw\n  twill flows --drops --watch\n  ovs-ofctl -O OpenFlow15 dump-flows br-twill > flows.txt; twill flows --dump flows.txt --manifests cluster/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			owner, err := o.filter()
			if err != nil {
				return err
			}
			query := url.Values{"owner": {owner}, "table": {o.table}}
			if o.drops {
				query.Set("drops", "1")
			}
			before := map[string]inspect.Flow{}
			return again.run(cmd.Context(), func(took time.Duration) error {
				var list []inspect.Flow
				if err := c.get(cmd.Context(), "", "/v1/flows", query, &list); err != nil {
					return err
				}
				switch {
				case len(list) == 0 && owner != "":
					return fmt.Errorf("this node has no flow of %s; %s", owner, whereFlowsAre(owner))
				case len(list) == 0 && o.table == "" && !o.drops:
					return fmt.Errorf("the bridge is empty: not one flow; `twill status` says what the agent waits for")
				}
				err := c.print(cmd.OutOrStdout(), list, func(s screen) { flowsText(s, list, before, took, o.raw) })
				for _, f := range list {
					before[f.Raw] = f
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.pod, "pod", "", "flows of one pod, NAMESPACE/NAME")
	f.StringVar(&o.node, "node", "", "flows toward and from one node")
	f.StringVar(&o.service, "service", "", "flows of one Service, NAMESPACE/NAME[:PORT]")
	f.StringVar(&o.policy, "policy", "", "flows of one NetworkPolicy, NAMESPACE/NAME, or ClusterNetworkPolicy, NAME, with the conditions it shares")
	f.StringVar(&o.owner, "owner", "", "flows of one owner, as printed")
	f.StringVar(&o.table, "table", "", "flows of one table, by name or number")
	f.BoolVar(&o.drops, "drops", false, "only flows that drop")
	f.BoolVar(&o.raw, "raw", false, "print the line of ovs-ofctl below each flow")
	cmd.MarkFlagsMutuallyExclusive("pod", "node", "service", "policy", "owner")
	again.flags(cmd)
	c.flags(cmd)
	return cmd
}

// whereFlowsAre says on which nodes there are flows of an owner.
func whereFlowsAre(owner string) string {
	switch kind, _, _ := strings.Cut(owner, "/"); kind {
	case "networkpolicy", "clusternetworkpolicy":
		return "a policy has flows on nodes with a pod that it selects: is there one (`twill status pods`), does the policy exist, is its name right?"
	case "service":
		return "a Service has flows on every node if it has a ClusterIP and Twill serves it (`twill status`): does it exist, is its name right?"
	}
	return "`twill status pods` and `twill status peers` list whom it knows"
}

func flowsText(s screen, list []inspect.Flow, before map[string]inspect.Flow, took time.Duration, raw bool) {
	last, table := "\x00", 9
	for _, f := range list {
		table = max(table, len(f.Table))
	}
	for _, f := range list {
		owner := string(f.Owner)
		if owner == "" {
			owner = "NOT TWILL'S"
		}
		if owner != last {
			fmt.Fprintln(s, s.bold(owner))
			last = owner
		}
		seen := fmt.Sprintf("%6s pkts %7sB", count(f.Packets), count(f.Bytes))
		if took > 0 {
			seen += fmt.Sprintf(" %9s", rate(before[f.Raw].Packets, f.Packets, took))
		}
		mark := ""
		switch f.State {
		case inspect.Alien:
			mark = "ALIEN: "
		case inspect.Altered:
			mark = "CHANGED BY SOMEBODY: "
		}
		s.put(fmt.Sprintf("  %-*s %s  ", table, f.Table, seen), mark+f.Sentence)
		if raw {
			fmt.Fprintln(s, "            "+s.dim(f.Raw))
		}
	}
}
