package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/lab"
)

// Sizes of the clusters that are compared, and how many Nodes join one after the other.
const (
	smallCluster = 10
	bigCluster   = 1000
	joining      = 50
)

// benchNodes starts one agent in clusters of different size. The other Nodes are objects and nothing else.
func benchNodes(ctx context.Context, name string) error {
	t := newTable("Nodes: one agent in a small and in a big cluster",
		"Nodes", "flows", "start to all flows, ms", "agent CPU, ms", "beside it: the same flows by ovs-ofctl bundle, ms",
		"one Node more, to its flow, p50 ms", "p99", "agent CPU, mean ms", "agent RSS MiB", "host routes", "neighbours")
	for _, size := range []int{smallCluster, bigCluster} {
		say("nodes: %d", size)
		o := lab.Options{Config: lab.Config{Name: name, IPFamily: "dual", LogLevel: "warning", NoAgent: true}, Nodes: 1}
		if err := withLab(ctx, o, func(l *lab.Lab) error { return growCluster(ctx, l, t, size) }); err != nil {
			return fmt.Errorf("%d nodes: %w", size, err)
		}
	}
	return nil
}

func growCluster(ctx context.Context, l *lab.Lab, t table, size int) error {
	if err := applyNodes(l, 1, size-1); err != nil {
		return err
	}
	n, d, err := onlyNode(ctx, l)
	if err != nil {
		return err
	}
	defer d.Close()
	began := time.Now()
	started := make(chan error, 1)
	go func() { started <- l.StartAgent(ctx, n.Name) }()
	if err := awaitFlow(ctx, d, size-1); err != nil {
		return errors.Join(err, <-started)
	}
	synced := time.Since(began)
	if err := <-started; err != nil { // it has probed what there is to probe
		return err
	}

	starting, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	dump, err := l.NodeExec(ctx, n.Name, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill")
	if err != nil {
		return err
	}
	raw, flows, err := rawBundle(ctx, l, dump.Stdout)
	if err != nil {
		return err
	}
	var more sample
	before, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	for i := range joining {
		began := time.Now()
		if err := applyNodes(l, size+i, 1); err != nil {
			return err
		}
		if err := awaitFlow(ctx, d, size+i); err != nil {
			return err
		}
		more = append(more, time.Since(began))
	}
	after, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	rss, err := residentMiB(n.AgentPid())
	if err != nil {
		return err
	}
	count := func(args ...string) string {
		out, err := l.NodeExec(ctx, n.Name, args...)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(strings.Count(out.Stdout, "\n"))
	}
	t.row(fmt.Sprint(size), fmt.Sprint(flows), ms(synced), ms(starting), ms(raw),
		ms(more.quantile(.5)), ms(more.quantile(.99)), ms((after-before)/joining), digits(rss),
		count("ip", "-4", "route", "show", "proto", "119")+" IPv4, "+count("ip", "-6", "route", "show", "proto", "119")+" IPv6",
		count("ip", "neigh", "show", "dev", "twill0", "nud", "permanent"))
	return nil
}

// nodeAddresses are those of the i-th Node: ranges of the cluster's CIDRs that the lab's own node leaves free.
func nodeAddresses(i int) (podCIDR4, podCIDR6, address string) {
	four := netip.AddrFrom4([4]byte{198, 18, byte(128 + i>>4), byte(i << 4)})
	return netip.PrefixFrom(four, 28).String(), fmt.Sprintf("2001:db8:42:%x::/64", 0x1000+i), fmt.Sprintf("198.19.%d.%d", 128+i>>8, i&255)
}

// applyNodes adds count Nodes from the i-th on.
func applyNodes(l *lab.Lab, i, count int) error {
	var b bytes.Buffer
	for k := i; k < i+count; k++ {
		four, six, address := nodeAddresses(k)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: n%d, uid: n%d, creationTimestamp: \"2026-01-01T00:00:00Z\"}\n"+
			"spec: {podCIDR: %q, podCIDRs: [%q, %q]}\nstatus: {addresses: [{type: InternalIP, address: %q}]}\n", k, k, four, four, six, address)
	}
	objects, err := lab.ParseManifests(b.Bytes())
	if err == nil {
		_, err = l.Apply(objects)
	}
	return err
}

// awaitFlow asks ovs-vswitchd until a packet of the host for the i-th Node would go through the tunnel to it.
func awaitFlow(ctx context.Context, d *ovs.Daemon, i int) error {
	four, _, address := nodeAddresses(i)
	packet := "in_port=32769,ip,nw_dst=" + netip.MustParsePrefix(four).Addr().Next().Next().String()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := d.Trace(ctx, "br-twill", packet)
		if err == nil && strings.Contains(text, address) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no flow toward node n%d (%s): %v: %s", i, packet, err, text)
		case <-tick.C:
		}
	}
}

// rawBundle installs the flows of a dump on a bridge of its own by one `ovs-ofctl bundle`: what no agent
// can be quicker than.
func rawBundle(ctx context.Context, l *lab.Lab, dump string) (took time.Duration, flows int, err error) {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if strings.Contains(line, "actions=") {
			b.WriteString("flow add " + strings.TrimSpace(line) + "\n")
			flows++
		}
	}
	if out, err := l.NodeExec(ctx, "node-1", "ovs-vsctl", "add-br", "br-raw", "--", "set", "Bridge", "br-raw", "datapath_type=netdev"); err != nil || out.Code != 0 {
		return 0, 0, fmt.Errorf("add-br br-raw: %v: %s", err, out.Stderr)
	}
	var stderr bytes.Buffer
	began := time.Now()
	code, err := l.RunOnNode(ctx, "node-1", lab.Command{
		Args: []string{"ovs-ofctl", "-O", "OpenFlow15", "bundle", "br-raw", "-"}, Stdin: strings.NewReader(b.String()), Stdout: &stderr, Stderr: &stderr,
	})
	if err != nil || code != 0 {
		return 0, 0, fmt.Errorf("ovs-ofctl bundle: exit code %d, %v: %s", code, err, stderr.String())
	}
	took = time.Since(began)
	// What follows is measured on an ovs-vswitchd that has only one bridge to care for.
	if out, err := l.NodeExec(ctx, "node-1", "ovs-vsctl", "del-br", "br-raw"); err != nil || out.Code != 0 {
		return 0, 0, fmt.Errorf("del-br br-raw: %v: %s", err, out.Stderr)
	}
	return took, flows, nil
}
