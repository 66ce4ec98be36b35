package main

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent"
)

// view is one form of the status.
type view struct {
	use, short, example string
	text                func(screen, agent.Status)
	part                func(agent.Status) any // what -o json prints; nil for all of it
}

func statusCommand() *cobra.Command {
	cmd := statusView(view{
		"status", "What this node's agent has, and what is wrong; exit status 1 if it is not ready",
		"  twill status\n  twill status -o json\n  kubectl twill status --on worker-2", statusText, nil,
	})
	for _, v := range []view{
		{"peers", "The other nodes: reachable, when they were last probed, how quickly they answered", "  twill status peers",
			peersText, func(s agent.Status) any { return s.Peers }},
		{"ipam", "The podCIDRs of this node: addresses used, resting and free, and who has them", "  twill status ipam",
			ipamText, func(s agent.Status) any { return s.Addresses }},
		{"pods", "The pods of this node: port, MAC, addresses, MTU", "  twill status pods -o json",
			podsText, func(s agent.Status) any { return s.Pods }},
	} {
		cmd.AddCommand(statusView(v))
	}
	return cmd
}

func statusView(v view) *cobra.Command {
	var c client
	var again watch
	cmd := &cobra.Command{
		Use: v.use, Short: v.short, Example: v.example, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return again.run(cmd.Context(), func(time.Duration) error {
				var s agent.Status
				if err := c.get(cmd.Context(), "", "/v1/status", nil, &s); err != nil {
					return err
				}
				var shown any = s
				if v.part != nil {
					shown = v.part(s)
				}
				if err := c.print(cmd.OutOrStdout(), shown, func(w screen) { v.text(w, s) }); err != nil {
					return err
				}
				if !s.Ready && v.part == nil && !again.on {
					return fmt.Errorf("node %s is not ready", s.Node)
				}
				return nil
			})
		},
	}
	again.flags(cmd)
	c.flags(cmd)
	return cmd
}

func statusText(s screen, st agent.Status) {
	line := func(name, format string, args ...any) {
		s.put(fmt.Sprintf("%-12s ", name), fmt.Sprintf(format, args...))
	}
	state := "ready"
	if !st.Ready {
		state = "NOT READY"
	}
	line("node", "%s, %s", st.Node, state)
	line("versions", "Twill %s, %s", st.Version, st.OVS)
	line("bridge", "%s, datapath %s", st.Bridge, st.Datapath)
	line("tunnel", "%s, not encrypted", st.Tunnel)
	line("address", "%s", st.Why)
	line("MTU", "%d bytes for pods, %d on %s%s", st.MTU, st.LinkMTU, st.Interface, verifiedMTU(st))
	for _, r := range st.Addresses.Ranges {
		line("podCIDR", "%s: %d addresses used, %d resting, %s free", r.CIDR, r.Used, r.Cooling, plenty(r.Free))
	}
	line("flows", "%d wanted, %s; last change added %d, deleted %d in %.0f ms for %s", st.Flows, liveWords(st), st.Last.Added, st.Last.Deleted, st.Last.TookMS, st.Last.Cause)
	line("repaired", "%d flows, %d things of the host that others had changed", st.Repaired.Flows, st.Repaired.Host)
	line("services", "%d ports, %d of them without an endpoint", st.Services, len(st.WithoutEndpoints))
	for _, o := range st.WithoutEndpoints {
		line("", "%s", o)
	}
	up, down := 0, 0
	for _, p := range st.Peers {
		switch {
		case p.Reachable != nil && *p.Reachable:
			up++
		case p.Reachable != nil:
			down++
		}
	}
	line("peers", "%d up, %d down, %d not yet probed", up, down, len(st.Peers)-up-down)
	line("pods", "%d attached", len(st.Pods))
	for _, w := range st.Watchers {
		if w.Problem == "" {
			line("watcher", "%s: works", w.Name)
		} else {
			line("watcher", "%s: %s", w.Name, w.Problem)
		}
	}
	for _, p := range st.Problems {
		s.putColoured(s.bad("problem")+"      ", 13, p)
	}
	if len(st.Problems) == 0 {
		fmt.Fprintln(s, s.good("nothing is wrong"))
	}
}

// liveWords tells how many flows the bridge holds, as far as that is known.
func liveWords(st agent.Status) string {
	if st.Live == nil {
		return "live not known"
	}
	return fmt.Sprintf("%d live", *st.Live)
}

// table prints rows in columns.
func table(s screen, rows ...[]string) {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, r := range rows {
		head := ""
		for i, cell := range r[:len(r)-1] {
			head += fmt.Sprintf("%-*s  ", widths[i], cell)
		}
		s.put(head, r[len(r)-1])
	}
}

func peersText(s screen, st agent.Status) {
	if len(st.Peers) == 0 {
		fmt.Fprintf(s, "node %s knows no other node\n", st.Node)
		return
	}
	rows := [][]string{{"NODE", "TUNNEL", "STATE", "RTT", "MTU", "PROBED", "PROBLEM"}}
	for _, p := range st.Peers {
		state, rtt, mtu, last := "-", "-", "-", "-"
		if p.Reachable != nil {
			state, last = "DOWN", p.Last.UTC().Format(time.TimeOnly)
			if *p.Reachable {
				state, rtt = "up", fmt.Sprintf("%.2f ms", p.RTTMS)
			}
		}
		switch {
		case p.MTU > 0:
			mtu = fmt.Sprint(p.MTU)
		case p.Narrow:
			mtu = "small"
		}
		rows = append(rows, []string{p.Node, p.Tunnel.String(), state, rtt, mtu, last, p.Problem})
	}
	table(s, rows...)
}

func ipamText(s screen, st agent.Status) {
	if len(st.Addresses.Ranges) == 0 {
		fmt.Fprintf(s, "node %s has no podCIDR: set spec.podCIDR of its Node, or run kube-controller-manager with --allocate-node-cidrs\n", st.Node)
		return
	}
	rows := [][]string{{"PODCIDR", "USED", "RESTING", "FREE", "CAPACITY"}}
	for _, r := range st.Addresses.Ranges {
		rows = append(rows, []string{r.CIDR.String(), fmt.Sprint(r.Used), fmt.Sprint(r.Cooling), plenty(r.Free), plenty(r.Capacity)})
	}
	table(s, rows...)
	rows = [][]string{{"ADDRESS", "POD"}}
	for _, p := range st.Pods {
		for _, a := range p.Addresses {
			rows = append(rows, []string{a.String(), p.Namespace + "/" + p.Name})
		}
	}
	if len(rows) > 1 {
		fmt.Fprintln(s)
		table(s, rows...)
	}
}

func podsText(s screen, st agent.Status) {
	if len(st.Pods) == 0 {
		fmt.Fprintf(s, "no pod is attached on node %s\n", st.Node)
		return
	}
	rows := [][]string{{"POD", "PORT", "MAC", "MTU", "ADDRESSES"}}
	for _, p := range st.Pods {
		name := p.Namespace + "/" + p.Name
		if p.IfName != "eth0" {
			name += " (" + p.IfName + ")"
		}
		row := []string{name, fmt.Sprintf("%d %s", p.OFPort, p.Port), p.MAC, fmt.Sprint(p.MTU), ""}
		for _, a := range p.Addresses {
			row[4] = a.String()
			rows = append(rows, row)
			row = make([]string, 5)
		}
	}
	table(s, rows...)
}

// plenty is a number of addresses; those of an IPv6 range nobody counts.
func plenty[N int | int64 | uint64](n N) string {
	if float64(n) >= 1e12 {
		return "over 10^12"
	}
	return fmt.Sprint(n)
}

// verifiedMTU says to how many peers packets of the MTU were seen to pass.
func verifiedMTU(st agent.Status) string {
	up, fit := 0, 0
	for _, p := range st.Peers {
		if p.Reachable != nil && *p.Reachable {
			up++
			if p.MTU == st.MTU {
				fit++
			}
		}
	}
	if up == 0 {
		return ""
	}
	return fmt.Sprintf("; packets of that size pass to and from %d of %d peers that are up", fit, up)
}
