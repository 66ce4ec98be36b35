package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/lab"
)

// serviceShape is how many Services there are, with how many endpoints each.
type serviceShape struct{ services, endpoints int }

// changing is how many times one endpoint of the last Service is replaced, one after the other.
const changing = 30

// benchServices starts one agent in clusters with many Services, and replaces an endpoint of one.
func benchServices(ctx context.Context, name string) error {
	if os.Getenv("TWILL_SLOW") == "" { // reading 20,000 manifests takes an agent longer than a lab waits for one
		if err := os.Setenv("TWILL_SLOW", "6"); err != nil {
			return err
		}
		defer os.Unsetenv("TWILL_SLOW")
	}
	// What a change costs is not to depend on how many audits, which read everything back whatever changes, fall into the time that all take.
	if err := os.Setenv("TWILL_AUDIT_INTERVAL", "1h"); err != nil {
		return err
	}
	defer os.Unsetenv("TWILL_AUDIT_INTERVAL")
	t := newTable("Services: one agent with many",
		"Services × endpoints", "flows", "groups", "start to the last flow, ms", "agent CPU, ms",
		"one endpoint replaced, to its bucket, p50 ms", "p99", "agent CPU, mean ms", "agent RSS MiB", "ovs-vswitchd RSS MiB")
	for _, shape := range []serviceShape{{10, 2}, {10_000, 2}, {100, 1000}} {
		say("services: %d × %d", shape.services, shape.endpoints)
		o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning", NoAgent: true}, Nodes: 1}
		if err := withLab(ctx, o, func(l *lab.Lab) error { return manyServices(ctx, l, t, shape) }); err != nil {
			return fmt.Errorf("%d × %d: %w", shape.services, shape.endpoints, err)
		}
	}
	return nil
}

// clusterIP is that of the i-th Service; endpoint the j-th of it, of pods that nobody is.
func clusterIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}) }
func endpointOf(i, j int) netip.Addr {
	n := i*7 + j
	return netip.AddrFrom4([4]byte{198, 18, byte(2 + n>>8&0x7f), byte(n)})
}

// writeService writes one with its slices of at most 100 endpoints, as Kubernetes makes them. shift moves the first endpoint
// elsewhere.
func writeService(b *bytes.Buffer, i, endpoints, shift int) {
	fmt.Fprintf(b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: default}\nspec: {clusterIPs: [%q], ports: [{port: 80}]}\n", i, clusterIP(i))
	for first := 0; first < endpoints; first += 100 {
		writeSlice(b, i, first, min(first+100, endpoints), shift)
	}
}

func writeSlice(b *bytes.Buffer, i, first, end, shift int) {
	fmt.Fprintf(b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%d-%d, namespace: default, labels: {kubernetes.io/service-name: s%[1]d}}\n"+
		"addressType: IPv4\nports: [{port: 8080}]\nendpoints:\n", i, first)
	for j := first; j < end; j++ {
		a := endpointOf(i, j)
		if j == 0 && shift > 0 {
			a = netip.AddrFrom4([4]byte{198, 18, 200, byte(shift)})
		}
		fmt.Fprintf(b, "- {addresses: [%q]}\n", a)
	}
}

func applyText(l *lab.Lab, text []byte) error {
	objects, err := lab.ParseManifests(text)
	if err == nil {
		_, err = l.Apply(objects)
	}
	return err
}

func manyServices(ctx context.Context, l *lab.Lab, t table, shape serviceShape) error {
	var b bytes.Buffer
	for i := range shape.services {
		writeService(&b, i, shape.endpoints, 0)
	}
	if err := applyText(l, b.Bytes()); err != nil {
		return err
	}
	n, d, err := onlyNode(ctx, l)
	if err != nil {
		return err
	}
	defer d.Close()
	last := shape.services - 1
	began := time.Now()
	started := make(chan error, 1)
	go func() { started <- l.StartAgent(ctx, n.Name) }()
	if err := awaitService(ctx, d, last, "group"); err != nil {
		return errors.Join(err, <-started)
	}
	synced := time.Since(began)
	if err := <-started; err != nil {
		return err
	}
	starting, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	replace := func(k int) (time.Duration, error) {
		var b bytes.Buffer
		writeSlice(&b, last, 0, min(100, shape.endpoints), k)
		began := time.Now()
		if err := applyText(l, b.Bytes()); err != nil {
			return 0, err
		}
		err := awaitEndpoint(ctx, l, netip.AddrFrom4([4]byte{198, 18, 200, byte(k)}))
		return time.Since(began), err
	}
	// ovs-vswitchd may still have to follow its database after the first bundle, and then refuses the next one: not what a
	// change costs.
	if _, err := replace(1); err != nil {
		return err
	}
	settled, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	var changes sample
	for k := range changing {
		took, err := replace(k + 2)
		if err != nil {
			return err
		}
		changes = append(changes, took)
	}
	ended, err := cpuTime(n.AgentPid())
	if err != nil {
		return err
	}
	agent, err := residentMiB(n.AgentPid())
	if err != nil {
		return err
	}
	pid, err := os.ReadFile(n.OVS().RunDir() + "/ovs-vswitchd.pid")
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		return err
	}
	daemon, err := residentMiB(number)
	if err != nil {
		return err
	}
	count := func(what string) string {
		out, err := l.NodeExec(ctx, n.Name, "ovs-ofctl", "-O", "OpenFlow15", what, "br-twill")
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(strings.Count(out.Stdout, "\n") - 1) // less the heading
	}
	t.row(fmt.Sprintf("%d × %d", shape.services, shape.endpoints), count("dump-flows"), count("dump-groups"), ms(synced), ms(starting),
		ms(changes.quantile(.5)), ms(changes.quantile(.99)), ms((ended-settled)/changing), digits(agent), digits(daemon))
	return nil
}

// awaitService asks ovs-vswitchd until a new connection of the host to the i-th Service meets what.
func awaitService(ctx context.Context, d *ovs.Daemon, i int, what string) error {
	packet := fmt.Sprintf("in_port=32769,tcp,nw_src=198.18.1.1,nw_dst=%s,tcp_src=40000,tcp_dst=80", clusterIP(i))
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := d.Trace(ctx, "br-twill", packet, "--ct-next", "trk,new")
		if err == nil && strings.Contains(text, what) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s meets no %s for Service %d: %v: %s", packet, what, i, err, text)
		case <-tick.C:
		}
	}
}

// awaitEndpoint asks until an address is an endpoint: its flows and its bucket come in one bundle. What the question itself takes is in the result.
func awaitEndpoint(ctx context.Context, l *lab.Lab, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		out, err := l.NodeExec(ctx, "node-1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-twill", "table=76,ip,nw_src="+a.String())
		if err != nil {
			return fmt.Errorf("no flow for endpoint %s: %w", a, err)
		}
		if strings.Contains(out.Stdout, "ct(") {
			return nil
		}
	}
}
