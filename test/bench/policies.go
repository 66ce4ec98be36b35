package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// changes is how often a policy is written in each cluster, and probing how long apart two probes are.
const (
	changes = 100
	probing = time.Millisecond
)

// size is how many rules there are, and how many pods with an address that they speak of.
type size struct{ rules, addresses int }

// benchPolicies measures a policy more beside many, many rules for many addresses, and what conntrack costs.
func benchPolicies(ctx context.Context, name string) error {
	o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning"}, Nodes: 1}
	return withLab(ctx, o, func(l *lab.Lab) error {
		pods, err := l.AddPods(ctx, []lab.Pod{
			{Namespace: "shop", Name: "client", Labels: map[string]string{"app": "client"}},
			{Namespace: "shop", Name: "server", Labels: map[string]string{"app": "server"}},
			{Namespace: "shop", Name: "open", Labels: map[string]string{"app": "open"}},
			{Namespace: "ns-0", Name: "bystander", Labels: map[string]string{"app": "app-0"}},
		})
		if err != nil {
			return err
		}
		b := policyBench{l: l, dir: filepath.Join(lab.Dir(l.Name), "manifests"), client: pods[0], server: pods[1], open: pods[2]}
		return errors.Join(b.isolated(ctx), b.latency(ctx), b.memory(ctx))
	})
}

type policyBench struct {
	l                    *lab.Lab
	dir                  string
	client, server, open lab.Pod
}

// write replaces a file of manifests; without text it goes.
func (b policyBench) write(file, text string) error {
	path := filepath.Join(b.dir, file)
	if text == "" {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

const denyServer = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: deny}
spec: {podSelector: {matchLabels: {app: server}}}
`

// others are so many policies that have nothing to do with the one that is measured; every hundredth selects a pod of
// this node.
func others(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: ns-%d, name: np-%d}\n"+
			"spec:\n  podSelector: {matchLabels: {app: app-%d}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: app-%d}}}, {ipBlock: {cidr: 203.0.113.%d/32}}], ports: [{port: %d}]}]\n",
			i%100, i, i/100%10*min(1, i%100), (i+1)%10, i%256, 1000+i%1000)
	}
	return s.String()
}

// latency is the time from the write of a policy to the first packet that does not arrive, and all after it.
func (b policyBench) latency(ctx context.Context) error {
	t := newTable("A NetworkPolicy more: from its write to the first probe that is blocked, one probe each "+probing.String(),
		"other policies", "changes", "p50 ms", "p99 ms", "slowest ms", "agent CPU per change, ms", "agent RSS MiB", "flows")
	for _, n := range []int{0, 1000, 10000} {
		say("policies: %d others", n)
		if err := b.write("others.yaml", others(n)); err != nil {
			return err
		}
		if err := b.settled(ctx); err != nil {
			return err
		}
		node, err := b.l.Node("node-1")
		if err != nil {
			return err
		}
		before, err := cpuTime(node.AgentPid())
		if err != nil {
			return err
		}
		var s sample
		for range changes {
			took, err := b.change(ctx)
			if err != nil {
				return fmt.Errorf("beside %d policies: %w", n, err)
			}
			s = append(s, took)
		}
		after, err := cpuTime(node.AgentPid())
		if err != nil {
			return err
		}
		rss, err := residentMiB(node.AgentPid())
		if err != nil {
			return err
		}
		flows, err := b.flows(ctx)
		if err != nil {
			return err
		}
		t.row(fmt.Sprint(n), fmt.Sprint(changes), ms(s.quantile(.5)), ms(s.quantile(.99)), ms(s.quantile(1)), ms((after-before)/(2*changes)), digits(rss), fmt.Sprint(flows))
	}
	return b.write("others.yaml", "")
}

// change writes the policy while probes run, and takes it away again.
func (b policyBench) change(ctx context.Context) (time.Duration, error) {
	took, _, err := timeBlocked(ctx, b.client, b.server,
		func() error { return b.write("deny.yaml", denyServer) },
		func() error { return b.write("deny.yaml", "") })
	return took, err
}

// timeBlocked is how long after deny began the first probe was sent after which none arrived, and how long deny itself
// took. It returns once probes arrive again, after allow.
func timeBlocked(ctx context.Context, from, to lab.Pod, deny, allow func() error) (blocked, request time.Duration, err error) {
	p, err := newProbe(from, to)
	if err != nil {
		return 0, 0, err
	}
	defer p.close()
	if err := p.until(ctx, "the first probe arrives", func() bool { return p.last.Load() >= 0 }); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := deny(); err != nil {
		return 0, 0, err
	}
	request = time.Since(began)
	const silence = 150
	if err := p.until(ctx, "probes are blocked", func() bool { return p.sent.Load()-p.last.Load() > silence }); err != nil {
		return 0, 0, err
	}
	blocked = p.at(p.last.Load() + 1).Sub(began)
	if err := allow(); err != nil {
		return 0, 0, err
	}
	last := p.last.Load()
	return blocked, request, p.until(ctx, "probes arrive again", func() bool { return p.last.Load() > last })
}

// probe sends a numbered packet each millisecond, and remembers when.
type probe struct {
	out        net.Conn
	in         net.PacketConn
	sent, last atomic.Int64
	times      [1 << 16]atomic.Int64
	done       chan struct{}
}

func newProbe(from, to lab.Pod) (*probe, error) {
	p := &probe{done: make(chan struct{})}
	p.last.Store(-1)
	// A port of its own: what the probe before still has on its way must not count here.
	at := netip.AddrPortFrom(to.Addresses[0], 0).String()
	if err := lab.Inside(to.NetNS, func() (err error) { p.in, err = net.ListenPacket("udp", at); return err }); err != nil {
		return nil, err
	}
	if err := lab.Inside(from.NetNS, func() (err error) { p.out, err = net.Dial("udp", p.in.LocalAddr().String()); return err }); err != nil {
		p.in.Close()
		return nil, err
	}
	go func() {
		b := make([]byte, 8)
		for {
			n, _, err := p.in.ReadFrom(b)
			if err != nil {
				return
			}
			if n == len(b) {
				p.last.Store(max(p.last.Load(), int64(binary.BigEndian.Uint64(b))))
			}
		}
	}()
	go func() {
		tick := time.NewTicker(probing)
		defer tick.Stop()
		for i := int64(0); ; i++ {
			select {
			case <-p.done:
				return
			case <-tick.C:
			}
			p.times[i%int64(len(p.times))].Store(time.Now().UnixNano())
			p.sent.Store(i)
			_, _ = p.out.Write(binary.BigEndian.AppendUint64(nil, uint64(i))) // one that cannot be sent did not arrive
		}
	}()
	return p, nil
}

// at is when a probe was sent, of the latest minute.
func (p *probe) at(i int64) time.Time { return time.Unix(0, p.times[i%int64(len(p.times))].Load()) }

func (p *probe) close() {
	close(p.done)
	p.out.Close()
	p.in.Close()
}

func (p *probe) until(ctx context.Context, what string, holds func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return await(ctx, what, func() (bool, error) { return holds(), nil })
}

// await looks at a condition each millisecond.
func await(ctx context.Context, what string, holds func() (bool, error)) error {
	tick := time.NewTicker(probing)
	defer tick.Stop()
	for {
		if ok, err := holds(); err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("never: %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// settled waits until the agent has used no processor for a while: what was written is then in force.
func (b policyBench) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	node, err := b.l.Node("node-1")
	if err != nil {
		return err
	}
	last, since := time.Duration(-1), time.Now()
	return await(ctx, "the agent is idle", func() (bool, error) {
		now, err := cpuTime(node.AgentPid())
		if now > last+20*time.Millisecond {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second, err
	})
}

func (b policyBench) flows(ctx context.Context) (int, error) {
	out, err := b.l.NodeExec(ctx, "node-1", "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-twill")
	return strings.Count(out.Stdout, "actions="), err
}

// memory has rules that speak of many pods, all for one pod of this node.
func (b policyBench) memory(ctx context.Context) error {
	t := newTable("Rules and addresses: ten rules in each policy, each with a port of its own and one of 50 groups of pods",
		"rules", "addresses", "flows of policies", "flows / (rules + addresses)", "write to all flows, s", "agent RSS MiB", "MiB more than without")
	node, err := b.l.Node("node-1")
	if err != nil {
		return err
	}
	empty, err := b.flows(ctx)
	if err != nil {
		return err
	}
	rss0, err := residentMiB(node.AgentPid())
	if err != nil {
		return err
	}
	for _, x := range []size{{100, 100}, {1000, 1000}, {10000, 5000}} {
		say("policies: %d rules, %d addresses", x.rules, x.addresses)
		began := time.Now()
		if err := errors.Join(b.write("peers.yaml", peers(x.addresses)), b.write("rules.yaml", rules(x.rules))); err != nil {
			return err
		}
		if err := b.settled(ctx); err != nil {
			return err
		}
		took := time.Since(began) - 2*time.Second
		flows, err := b.flows(ctx)
		if err != nil {
			return err
		}
		rss, err := residentMiB(node.AgentPid())
		if err != nil {
			return err
		}
		more := flows - empty
		t.row(fmt.Sprint(x.rules), fmt.Sprint(x.addresses), fmt.Sprint(more), digits(float64(more)/float64(x.rules+x.addresses)),
			digits(took.Seconds()), digits(rss), digits(rss-rss0))
	}
	return errors.Join(b.write("rules.yaml", ""), b.write("peers.yaml", ""))
}

func peers(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: peers, name: p%d, uid: u%[1]d, labels: {group: g%d}}\nstatus: {podIPs: [{ip: 198.18.%d.%d}]}\n",
			i, i%50, 128+i>>8, i&255)
	}
	return s.String()
}

func rules(n int) string {
	var s strings.Builder
	for i := range n {
		if i%10 == 0 {
			fmt.Fprintf(&s, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: r%d}\nspec:\n  podSelector: {matchLabels: {app: server}}\n  ingress:\n", i)
		}
		fmt.Fprintf(&s, "  - {from: [{namespaceSelector: {}, podSelector: {matchLabels: {group: g%d}}}], ports: [{port: %d}]}\n", i%50, 1+i)
	}
	return s.String()
}

// isolated compares an isolated pod with an open one, on the same node, from the same client.
func (b policyBench) isolated(ctx context.Context) error {
	if err := b.write("isolate.yaml", strings.Replace(denyServer, "{podSelector: {matchLabels: {app: server}}}", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}", 1)); err != nil {
		return err
	}
	if err := b.settled(ctx); err != nil {
		return err
	}
	at := func(p lab.Pod) end { return end{strings.TrimPrefix(p.NetNS, "/run/netns/"), p.Addresses[0]} }
	var gbits, perSecond [2][]float64
	for round := range rounds {
		for i := range 2 {
			n := (i + round) % 2 // who goes first changes
			to := at([2]lab.Pod{b.server, b.open}[n])
			g, err := stream(ctx, at(b.client), to)
			if err != nil {
				return err
			}
			c, err := connections(ctx, at(b.client), to)
			if err != nil {
				return err
			}
			gbits[n], perSecond[n] = append(gbits[n], g), append(perSecond[n], c)
		}
	}
	t := newTable("An isolated pod beside an open one, same node, same client, medians of "+fmt.Sprint(rounds)+" alternating rounds",
		"", "isolated", "open", "isolated / open")
	for _, r := range []struct {
		title  string
		values [2][]float64
	}{{"one TCP stream, Gbit/s", gbits}, {"new TCP connections per second, one after the other", perSecond}} {
		t.row(r.title, digits(median(r.values[0])), digits(median(r.values[1])), digits(median(r.values[0])/median(r.values[1])))
	}
	return b.write("isolate.yaml", "")
}

// connections is how many TCP connections a second can be opened and reset, one after the other.
func connections(ctx context.Context, from, to end) (float64, error) {
	var l net.Listener
	if err := inNetNS(to.ns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to.address, 0).String())
		return err
	}); err != nil {
		return 0, err
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	n, began := 0, time.Now()
	err := inNetNS(from.ns, func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		for time.Since(began) < streamSeconds*time.Second {
			c, err := d.DialContext(ctx, "tcp", l.Addr().String())
			if err != nil {
				return err
			}
			_ = c.(*net.TCPConn).SetLinger(0) // no port stays in TIME_WAIT, whoever closes first
			c.Close()
			n++
		}
		return nil
	})
	return float64(n) / time.Since(began).Seconds(), err
}
