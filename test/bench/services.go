package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/lab"
)

// serviceShape is how many Services there are, with how many endpoints each.
type serviceShape struct{ services, endpoints int }

const (
	// changing is how many times one endpoint of the last Service is replaced, one after the other.
	changing = 30
	// talking is how long connections are opened, and round trips made, each way.
	talking = 5 * time.Second
)

// benchServices starts one agent in clusters with many Services, and opens connections through one of them.
func benchServices(ctx context.Context, name string) error {
	if os.Getenv("TWILL_SLOW") == "" { // reading 20,000 manifests takes an agent longer than a lab waits for one
		if err := os.Setenv("TWILL_SLOW", "6"); err != nil {
			return err
		}
		defer os.Unsetenv("TWILL_SLOW")
	}
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
	say("services: connections")
	c := newTable("Services: connections by a ClusterIP beside the pod's own address, same node",
		"10,000 Services beside it", "to", "connections/s, 8 at once", "round trip of an open connection, p50 µs", "p99")
	for _, crowded := range []bool{false, true} {
		o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning"}, Nodes: 1}
		if err := withLab(ctx, o, func(l *lab.Lab) error { return serviceConnections(ctx, l, c, crowded) }); err != nil {
			return err
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
	n, err := l.Node("node-1")
	if err != nil {
		return err
	}
	d, err := ovs.DialDaemon(ctx, n.OVS().RunDir())
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
	var changes sample
	for k := range changing {
		var b bytes.Buffer
		writeSlice(&b, last, 0, min(100, shape.endpoints), k+1)
		began := time.Now()
		if err := applyText(l, b.Bytes()); err != nil {
			return err
		}
		if err := awaitEndpoint(ctx, l, netip.AddrFrom4([4]byte{198, 18, 200, byte(k + 1)})); err != nil {
			return err
		}
		changes = append(changes, time.Since(began))
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
		ms(changes.quantile(.5)), ms(changes.quantile(.99)), ms((ended-starting)/changing), digits(agent), digits(daemon))
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

// serviceConnections compares the two ways to one pod.
func serviceConnections(ctx context.Context, l *lab.Lab, t table, crowded bool) error {
	pods, err := l.AddPods(ctx, []lab.Pod{{Name: "client", Node: "node-1"}, {Name: "server", Node: "node-1"}})
	if err != nil {
		return err
	}
	client, server := pods[0].NetNS, pods[1]
	var listener net.Listener
	if err := lab.Inside(server.NetNS, func() (err error) { listener, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		return err
	}
	defer listener.Close()
	go echo(listener)
	services := 1
	if crowded {
		services = 10_000
	}
	var b bytes.Buffer
	for i := 1; i < services; i++ {
		writeService(&b, i, 2, 0)
	}
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s0, namespace: default}\nspec: {clusterIPs: [%q], ports: [{port: 80}]}\n"+
		"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s0-0, namespace: default, labels: {kubernetes.io/service-name: s0}}\n"+
		"addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [%q], nodeName: node-1}]\n", clusterIP(0), server.Addresses[0])
	if err := applyText(l, b.Bytes()); err != nil {
		return err
	}
	n, err := l.Node("node-1")
	if err != nil {
		return err
	}
	d, err := ovs.DialDaemon(ctx, n.OVS().RunDir())
	if err != nil {
		return err
	}
	defer d.Close()
	if err := errors.Join(awaitService(ctx, d, 0, "group"), awaitService(ctx, d, services-1, "group")); err != nil {
		return err
	}
	for _, to := range []struct {
		name string
		at   netip.AddrPort
	}{{"the pod", netip.AddrPortFrom(server.Addresses[0], 8080)}, {"the ClusterIP", netip.AddrPortFrom(clusterIP(0), 80)}} {
		rate, err := connectionRate(client, to.at)
		if err != nil {
			return err
		}
		trips, err := exchangeTimes(client, to.at)
		if err != nil {
			return err
		}
		t.row(map[bool]string{true: "yes", false: "no"}[crowded], to.name, fmt.Sprintf("%.0f", rate),
			digits(float64(trips.quantile(.5).Nanoseconds())/1000), digits(float64(trips.quantile(.99).Nanoseconds())/1000))
	}
	return nil
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for b := make([]byte, 1); ; {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// exchangeOnce is a byte there and back.
func exchangeOnce(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := c.Read(b)
	return err
}

func open(ns string, at netip.AddrPort) (c net.Conn, err error) {
	err = lab.Inside(ns, func() error { c, err = net.DialTimeout("tcp", at.String(), 5*time.Second); return err })
	return c, err
}

// connectionRate is how many connections a second eight clients open, use for a byte each way, and close.
func connectionRate(ns string, at netip.AddrPort) (float64, error) {
	var done atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for time.Since(began) < talking {
				c, err := open(ns, at)
				if err == nil {
					err = exchangeOnce(c)
					c.Close()
				}
				if err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, fmt.Errorf("connecting to %s: %w", at, err)
	default:
		return float64(done.Load()) / took.Seconds(), nil
	}
}

func exchangeTimes(ns string, at netip.AddrPort) (out sample, err error) {
	c, err := open(ns, at)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for began := time.Now(); time.Since(began) < talking; {
		sent := time.Now()
		if err := exchangeOnce(c); err != nil {
			return nil, fmt.Errorf("round trip to %s: %w", at, err)
		}
		out = append(out, time.Since(sent))
	}
	return out, nil
}
