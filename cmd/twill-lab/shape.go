package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/twill-net/twill/test/lab"
)

// labFlags are the flags that say what a new lab is like.
func labFlags(f *pflag.FlagSet, o *lab.Options) {
	f.IntVar(&o.Nodes, "nodes", 3, "how many nodes, 1 to 200")
	f.StringVar(&o.Datapath, "datapath", "netdev", "netdev (userspace, works everywhere) or system (the kernel's openvswitch module)")
	f.StringVar(&o.Tunnel, "tunnel", "geneve", "geneve or vxlan")
	f.StringVar(&o.IPFamily, "ip-family", "dual", "ipv4, ipv6 or dual")
	f.IntVar(&o.UnderlayMTU, "underlay-mtu", 1500, "MTU in bytes of the network that joins the nodes")
	f.StringVar(&o.BinDir, "bin-dir", "", "where twill and twill-cni are (default: beside twill-lab)")
	f.StringVar(&o.LogLevel, "log-level", "info", "the agents' log level")
	f.BoolVar(&o.NoAgent, "no-agent", false, "nodes with Open vSwitch but without an agent")
	f.BoolVar(&o.Keep, "keep", false, "leave a lab that fails to come up as it is")
}

func (a *app) up() *cobra.Command {
	var o lab.Options
	c := &cobra.Command{Use: "up", Short: "Build a lab and wait until every agent is ready", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name = a.name
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			return a.printStatus(cmd, l)
		}}
	labFlags(c.Flags(), &o)
	return c
}

func (a *app) down() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Remove a lab and all that belongs to it; also after a crash", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return lab.Down(cmd.Context(), a.name) }}
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show nodes, agents and pods", Args: exactly(0),
		RunE: a.withLab(func(cmd *cobra.Command, l *lab.Lab, _ []string) error { return a.printStatus(cmd, l) })}
}

// withLab finds the lab before the command runs.
func (a *app) withLab(f func(*cobra.Command, *lab.Lab, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		l, err := lab.Open(a.name)
		if err != nil {
			return err
		}
		return f(cmd, l, args)
	}
}

func (a *app) printStatus(cmd *cobra.Command, l *lab.Lab) error {
	s, err := l.Status(cmd.Context())
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), s, func(w io.Writer) { statusText(w, s) })
}

func statusText(w io.Writer, s lab.Status) {
	fmt.Fprintf(w, "lab %s: %s datapath, %s tunnel, %s, underlay MTU %d, in %s\n", s.Name, s.Datapath, s.Tunnel, s.IPFamily, s.UnderlayMTU, s.Dir)
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tADDRESSES\tPOD CIDRS\tOVSDB\tVSWITCHD\tAGENT\tREADY")
	for _, n := range s.Nodes {
		ready := "yes"
		if !n.Ready {
			ready = "no: " + n.Reason
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, strings.Join(n.Addresses, ","), strings.Join(n.PodCIDRs, ","),
			pid(n.OVSDBPid), pid(n.VSwitchdPid), pid(n.AgentPid), ready)
	}
	t.Flush()
	if len(s.Pods) == 0 {
		return
	}
	fmt.Fprintln(t, "POD\tNODE\tADDRESSES")
	for _, p := range s.Pods {
		fmt.Fprintf(t, "%s\t%s\t%s\n", p, p.Node, join(p))
	}
	t.Flush()
}

func pid(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("pid %d", n)
}

func join(p lab.Pod) string {
	var s []string
	for _, a := range p.Addresses {
		s = append(s, a.String())
	}
	if len(s) == 0 {
		return "not attached"
	}
	return strings.Join(s, ",")
}
