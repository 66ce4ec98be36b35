// Package lab builds a cluster's worth of nodes on one machine: every node is a network namespace
// with its own ovsdb-server and ovs-vswitchd and a real agent process, joined by an underlay in a
// namespace of its own. Pods are namespaces that are attached by executing the installed CNI
// configuration through libcni, exactly as a container runtime does.
//
// # Workflow
//
//	l, err := lab.Up(ctx, lab.Options{Config: lab.Config{Name: "a"}, Nodes: 2})
//	defer l.Down(ctx)
//	l.AddPod(ctx, lab.Pod{Name: "web", Node: "node-1"})
//	out, err := l.Exec(ctx, "web", "ping", "-c1", "198.18.2.2")
//
// [Open] finds a lab that another process started: all there is to know stands in the lab's
// directory and in its namespaces, nothing in memory.
//
// # Layout
//
// The namespaces of lab a are twl-a-underlay (one Linux bridge, the physical network), twl-a-outside
// (a host that is no node; the nodes' default route leads to it), twl-a-n1, twl-a-n2, … (the nodes)
// and twl-a-p-NAMESPACE_POD (the pods). The directory of the lab (see [Dir]) holds
//
//	lab.json            the Config
//	manifests/          the cluster: Node and Pod objects of the lab, and whatever was applied
//	pods/               one record per pod that is attached
//	nodes/node-1/       ovs/ (databases, sockets, logs), cni/{bin,net.d,cache}, run/ (sockets, pid), agent.log
//
// # Gotchas
//
// With the userspace datapath a node's address sits on the internal port of a second bridge,
// br-phy, because OVS sends tunnel packets only through bridges it knows.
//
// Labs never see each other, so they all use the same addresses.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Lab is a handle on a lab, running or half dead. Its methods may be called from several goroutines
// and from several processes at once.
type Lab struct {
	Config
	dir string
}

// Up builds a lab and returns when every agent is ready. When it fails, what was built is torn down
// again, unless o.Keep.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := checkMachine(o.Config); err != nil {
		return nil, err
	}
	l := &Lab{Config: o.Config, dir: Dir(o.Name)}
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := l.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(l.path("lab.json")); err == nil {
		return nil, fmt.Errorf("lab %q exists already: take it down with `twill-lab down --name %s`, or choose another --name", l.Name, l.Name)
	}
	if left := l.namespaces(); len(left) > 0 {
		return nil, fmt.Errorf("namespaces of a lab %q are left (%s, …): remove them with `twill-lab down --name %s`", l.Name, left[0], l.Name)
	}
	if err := l.build(ctx, o.Nodes); err != nil {
		if o.Keep {
			return nil, fmt.Errorf("%w (left as it is because of --keep)", err)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return nil, errors.Join(err, l.remove(ctx))
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, nodes int) error {
	for _, d := range []string{"manifests", "pods", "nodes"} {
		if err := os.MkdirAll(l.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.addUnderlay(ctx); err != nil {
		return err
	}
	all := make([]*Node, nodes)
	for i := range all {
		all[i] = l.node(i + 1)
	}
	// All nodes are known to the cluster before the first agent starts, so that it meets them at once.
	if err := each(ctx, all, l.addNode); err != nil {
		return err
	}
	if l.NoAgent {
		return nil
	}
	return each(ctx, all, l.startAgent)
}

// Open finds the lab of that name.
func Open(name string) (*Lab, error) {
	l := &Lab{Config: Config{Name: name}, dir: Dir(name)}
	data, err := os.ReadFile(l.path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %q: start it with `twill-lab up --name %s`, or name another one with --name", name, name)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &l.Config); err != nil {
		return nil, fmt.Errorf("%s: %w; take the lab down with `twill-lab down --name %s`", l.path("lab.json"), err, name)
	}
	return l, nil
}

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l.Config, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(l.path("lab.json"), data)
}

// path is a path inside the lab's directory.
func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

// lock keeps other processes from changing the lab's shape (its nodes, its existence) meanwhile.
func (l *Lab) lock() (unlock func(), err error) {
	f, err := os.OpenFile(l.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another twill-lab is building or changing lab %q: wait for it to end", l.Name)
	}
	return func() { f.Close() }, nil
}

// each calls f for all items concurrently and returns the first error.
func each[T any](ctx context.Context, items []T, f func(context.Context, T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, item := range items {
		g.Go(func() error { return f(ctx, item) })
	}
	return g.Wait()
}

// writeFile replaces a file in one step: readers see the old content or the new.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
