package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/test/lab"
)

func (a *app) demo() *cobra.Command {
	var o lab.Options
	c := &cobra.Command{Use: "demo", Short: "Show it all: nodes, pods, pings over Geneve and VXLAN, a packet's path, a pod's flows", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name = a.name
			if !cmd.Flags().Changed("name") {
				o.Name = "demo"
			}
			d := &demo{out: cmd.OutOrStdout(), options: o}
			return d.show(cmd.Context())
		}}
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab up and say what to try next")
	c.Flags().StringVar(&o.Datapath, "datapath", "netdev", "netdev or system")
	return c
}

// demo is one run of the demonstration.
type demo struct {
	out     io.Writer
	options lab.Options
	lab     *lab.Lab
	pods    map[string]lab.Pod
}

// demoPods: a and c share node-1, b and d are elsewhere.
func demoPods() []lab.Pod {
	return []lab.Pod{
		{Name: "a", Node: "node-1", Labels: map[string]string{"app": "a"}},
		{Name: "b", Node: "node-2", Labels: map[string]string{"app": "b"}},
		{Name: "c", Node: "node-1", Labels: map[string]string{"app": "c"}},
		{Name: "d", Node: "node-3", Labels: map[string]string{"app": "d"}},
	}
}

func (d *demo) show(ctx context.Context) (err error) {
	start := time.Now()
	d.options.Nodes = 3
	if err := d.step("lab of 3 nodes is up: Open vSwitch and an agent on each, Geneve, IPv4 and IPv6", func() (string, error) {
		d.lab, err = lab.Up(ctx, d.options)
		return "", err
	}); err != nil {
		return err
	}
	err = d.steps(ctx)
	if !d.options.Keep {
		err = errors.Join(err, d.tearDown(ctx))
	} else if err != nil {
		fmt.Fprintf(d.out, "\nThe lab is left up: %[1]s status, %[1]s down\n", d.command())
	} else {
		d.hints()
	}
	if err == nil {
		fmt.Fprintf(d.out, "\nAll steps succeeded, in %.1fs.\n", time.Since(start).Seconds())
	}
	return err
}

// steps are what there is to see while the lab is up.
func (d *demo) steps(ctx context.Context) error {
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"4 pods are attached through CNI", d.attach},
		{"this is what it looks like", d.picture},
		{"same node: a reaches c, IPv4 and IPv6", d.pings("a", "c")},
		{"across nodes over Geneve: a reaches b and d, IPv4 and IPv6", d.pings("a", "b", "d")},
		{"the agents are restarted with VXLAN", d.switchTunnel("vxlan")},
		{"across nodes over VXLAN: a reaches b and d, IPv4 and IPv6", d.pings("a", "b", "d")},
		{"the path of one packet from a to b, on both nodes: twill trace", d.trace("a", "b")},
		{"the flows of pod a and whom they belong to: twill flows --pod default/a", d.onNode("node-1", "twill", "flows", "--pod", "default/a")},
	} {
		if err := d.step(s.name, func() (string, error) { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// step does one thing and prints one line about it, with its duration, and below it what it had to show.
func (d *demo) step(name string, do func() (string, error)) error {
	start := time.Now()
	text, err := do()
	word := "ok"
	if err != nil {
		word = "FAILED"
	}
	fmt.Fprintf(d.out, "%s %*.1fs  %s\n", word, 10-len(word), time.Since(start).Seconds(), name)
	if text != "" {
		fmt.Fprintf(d.out, "\n%s\n\n", indent(text))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func indent(text string) string {
	text = "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
	return strings.ReplaceAll(text, "\n    \n", "\n\n")
}

// tearDown works also when the demo was interrupted.
func (d *demo) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return d.step("the lab is torn down", func() (string, error) { return "", d.lab.Down(ctx) })
}

func (d *demo) attach(ctx context.Context) (string, error) {
	d.pods = map[string]lab.Pod{}
	pods, err := d.lab.AddPods(ctx, demoPods())
	for _, p := range pods {
		d.pods[p.Name] = p
	}
	return "", err
}

func (d *demo) picture(ctx context.Context) (string, error) {
	s, err := d.lab.Status(ctx)
	if err != nil {
		return "", err
	}
	return picture(s), nil
}

// pings sends three pings of each family to each pod and wants all of them answered.
func (d *demo) pings(from string, to ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		for _, name := range to {
			p := d.pods[name]
			if len(p.Addresses) != 2 {
				return "", fmt.Errorf("pod %s has addresses %v, and IPv4 and IPv6 were wanted", p, p.Addresses)
			}
			for _, address := range p.Addresses {
				out, err := d.lab.Exec(ctx, from, "ping", "-c3", "-i0.1", "-W2", address.String())
				if err != nil {
					return "", err
				}
				if out.Code != 0 || !strings.Contains(out.Stdout, " 0% packet loss") {
					return out.Stdout + out.Stderr, fmt.Errorf("ping of %s from %s to %s lost packets", address, from, name)
				}
			}
		}
		return "", nil
	}
}

// switchTunnel changes the encapsulation and asks Open vSwitch whether that is what it does now.
func (d *demo) switchTunnel(tunnel string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if err := d.lab.SetTunnel(ctx, tunnel); err != nil {
			return "", err
		}
		for _, n := range d.lab.Nodes() {
			out, err := d.lab.NodeExec(ctx, n.Name, "ovs-vsctl", "--bare", "--columns=name", "find", "interface", "type="+tunnel)
			if err != nil {
				return "", err
			}
			if strings.TrimSpace(out.Stdout) == "" {
				return out.Stderr, fmt.Errorf("%s has no %s port although its agent is ready", n.Name, tunnel)
			}
		}
		return "", nil
	}
}

// trace follows one packet through the bridge of the sender's node and then that of the receiver's.
func (d *demo) trace(from, to string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		a, b := d.pods[from], d.pods[to]
		var text string
		for _, part := range []struct {
			node string
			args []string
		}{
			{a.Node, []string{"twill", "trace", a.String(), b.Addresses[0].String()}},
			{b.Node, []string{"twill", "trace", "node/" + a.Node, b.String(), "--source", a.Addresses[0].String()}},
		} {
			out, err := d.onNode(part.node, part.args...)(ctx)
			text += fmt.Sprintf("%s$ %s\n%s\n", part.node, strings.Join(part.args, " "), out)
			if err != nil {
				return text, err
			}
		}
		return text, nil
	}
}

func (d *demo) onNode(node string, args ...string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		out, err := d.lab.NodeExec(ctx, node, args...)
		if err == nil && out.Code != 0 {
			err = fmt.Errorf("exit code %d", out.Code)
		}
		if err == nil && strings.TrimSpace(out.Stdout) == "" {
			err = errors.New("it printed nothing")
		}
		return out.Stdout + out.Stderr, err
	}
}

// command is how to speak to this lab from the checkout.
func (d *demo) command() string { return "bin/twill-lab --name " + d.lab.Name }

// hints say what to try in a lab that is left up.
func (d *demo) hints() {
	b := d.pods["b"].Addresses[0]
	fmt.Fprintf(d.out, `
The lab is left up. Try:
  %[1]s status
  %[1]s exec a -- ping -c3 %[2]s
  %[1]s node exec node-1 -- twill flows
  %[1]s node exec node-1 -- ovs-vsctl show
  %[1]s node exec node-1 -- ovs-ofctl -O OpenFlow15 --names dump-flows br-twill
  %[1]s agent kill node-1     # and ping on
  %[1]s agent start node-1
  %[1]s node add              # and watch the others' logs: tail -f %[3]s
  %[1]s down
`, d.command(), b, lab.Dir(d.lab.Name)+"/nodes/*/agent.log")
}
