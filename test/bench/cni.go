package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// inARow is how many pods a node has at most by default (kubelet --max-pods); burst sizes are those of a
// deployment that is scaled up, and of a node that comes back.
const (
	inARow     = 110
	smallBurst = 50
	bigBurst   = 250
)

// network is a CNI configuration and pods to attach by it.
type network struct {
	cni  *lab.CNI
	pods []lab.Pod
}

func benchCNI(ctx context.Context, name string) error {
	dir, err := os.MkdirTemp("", "twill-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := buildReference(ctx, dir); err != nil {
		return err
	}
	t := newTable("CNI commands through libcni, beside the reference bridge plugin with host-local",
		"", "Twill p50 ms", "p99", "all", "failed", "reference p50 ms", "p99", "all", "failed", "Twill / reference p50", "p99", "all", "Twill CPU per command, ms", "reference", "in the agent, mean ms", "transactions", "bundles")
	for _, phase := range []struct {
		title      string
		size       int
		rounds     int
		concurrent bool
	}{
		{fmt.Sprintf("%d in a row", inARow), inARow, 1, false},
		{fmt.Sprintf("%d at once", smallBurst), smallBurst, 3, true},
		{fmt.Sprintf("%d at once", bigBurst), bigBurst, 1, true},
	} {
		say("CNI: %s", phase.title)
		o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning"}, Nodes: 1}
		err := withLab(ctx, o, func(l *lab.Lab) error {
			return compare(ctx, l, dir, t, phase.title, phase.size, phase.rounds, phase.concurrent)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", phase.title, err)
		}
	}
	return nil
}

// compare attaches and detaches pods by both networks and prints a row for ADD and one for DEL.
func compare(ctx context.Context, l *lab.Lab, plugins string, t table, title string, size, rounds int, concurrent bool) error {
	node, err := l.Node("node-1")
	if err != nil {
		return err
	}
	twill, err := loadTwill(ctx, l)
	if err != nil {
		return err
	}
	reference, err := newReference(ctx, l, plugins)
	if err != nil {
		return err
	}
	nets := [2]*network{{cni: twill}, {cni: reference}}
	for i, n := range nets {
		if n.pods, err = makePods(ctx, l, fmt.Sprintf("c%d", i), size*rounds); err != nil {
			return err
		}
	}
	// A runtime attaches pods that the cluster has: the agent waits for their objects.
	for _, p := range nets[0].pods {
		if _, err := l.Apply(p.Manifest()); err != nil {
			return err
		}
	}
	var add, del [2]outcome
	var adding, deleting activity
	for round := range rounds {
		lo, hi := round*size, (round+1)*size
		for _, step := range []struct {
			command string
			verb    func(*network, lab.Pod) error
			out     *[2]outcome
			count   *activity
		}{
			{"ADD", func(n *network, p lab.Pod) error { _, err := n.cni.Add(ctx, p); return err }, &add, &adding},
			{"DEL", func(n *network, p lab.Pod) error { return n.cni.Del(ctx, p) }, &del, &deleting},
		} {
			before, err := readCounters(ctx, node)
			if err != nil {
				return err
			}
			if concurrent {
				for i := range nets {
					n := (i + round) % 2 // who goes first changes
					step.out[n].together(nets[n].pods[lo:hi], func(p lab.Pod) error { return step.verb(nets[n], p) })
				}
			} else {
				for k := lo; k < hi; k++ {
					for i := range nets {
						n := (i + k) % 2
						step.out[n].one(func() error { return step.verb(nets[n], nets[n].pods[k]) })
					}
				}
			}
			after, err := readCounters(ctx, node)
			if err != nil {
				return err
			}
			step.count.add(before, after, step.command)
			step.out[0].cpu += after.cpu() - before.cpu() // the reference has no daemon
		}
	}
	printPair(t, "ADD, "+title, add, adding, rounds)
	printPair(t, "DEL, "+title, del, deleting, rounds)
	return errors.Join(add[0].err, del[0].err, add[1].err, del[1].err)
}

// loadTwill waits until the agent has installed its configuration, which follows readiness.
func loadTwill(ctx context.Context, l *lab.Lab) (*lab.CNI, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		c, err := l.CNI("node-1")
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// makePods makes the namespaces of pods that nobody has attached yet.
func makePods(ctx context.Context, l *lab.Lab, prefix string, count int) ([]lab.Pod, error) {
	var pods []lab.Pod
	var lines []string
	for i := range count {
		name := fmt.Sprintf("%s-%d", prefix, i)
		sum := sha256.Sum256([]byte(name))
		pods = append(pods, lab.Pod{
			Namespace: "default", Name: name, Node: "node-1", UID: fmt.Sprintf("%x", sum[:16]), Sandbox: fmt.Sprintf("%x", sum),
			NetNS: "/run/netns/" + namespace(l, "p-"+name),
		})
		lines = append(lines, "netns add "+namespace(l, "p-"+name))
	}
	return pods, ip(ctx, lines...)
}

// activity is what the agent did meanwhile.
type activity struct{ commands, seconds, transactions, bundles float64 }

func (a *activity) add(before, after counters, command string) {
	a.commands += after.since(before, fmt.Sprintf(cniCount, command))
	a.seconds += after.since(before, fmt.Sprintf(cniSeconds, command))
	a.transactions += after.since(before, transactions)
	a.bundles += after.since(before, bundles)
}

// outcome is what became of some commands.
type outcome struct {
	took   sample
	total  time.Duration
	cpu    time.Duration // of plugins, agent and OVS
	failed int
	err    error // the first
}

func (o *outcome) note(took time.Duration, err error) {
	if err != nil {
		o.failed++
		if o.err == nil {
			o.err = err
		}
		return
	}
	o.took = append(o.took, took)
}

func (o *outcome) count() int { return len(o.took) + o.failed }

func (o *outcome) one(f func() error) {
	began, cpu := time.Now(), pluginTime()
	err := f()
	took := time.Since(began)
	o.total += took
	o.cpu += pluginTime() - cpu
	o.note(took, err)
}

// together starts all at the same time.
func (o *outcome) together(pods []lab.Pod, f func(lab.Pod) error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	began, cpu := time.Now(), pluginTime()
	for _, p := range pods {
		wg.Go(func() {
			err := f(p)
			mu.Lock()
			defer mu.Unlock()
			o.note(time.Since(began), err)
		})
	}
	wg.Wait()
	o.total += time.Since(began)
	o.cpu += pluginTime() - cpu
}

func printPair(t table, title string, o [2]outcome, did activity, rounds int) {
	cells := []string{title}
	for _, x := range o {
		cells = append(cells, ms(x.took.quantile(.5)), ms(x.took.quantile(.99)), ms(x.total/time.Duration(rounds)), fmt.Sprint(x.failed))
	}
	ratio := func(f func(outcome) time.Duration) string { return digits(float64(f(o[0])) / float64(f(o[1]))) }
	cells = append(cells,
		ratio(func(x outcome) time.Duration { return x.took.quantile(.5) }),
		ratio(func(x outcome) time.Duration { return x.took.quantile(.99) }),
		ratio(func(x outcome) time.Duration { return x.total }),
		ms(o[0].cpu/time.Duration(max(1, o[0].count()))), ms(o[1].cpu/time.Duration(max(1, o[1].count()))),
		digits(1000*did.seconds/did.commands), digits(did.transactions/float64(rounds)), digits(did.bundles/float64(rounds)))
	t.row(cells...)
}
