// Command run starts a real Kubernetes on this machine with Twill in it, to look at.
//
//	go run ./test/cluster/run [--nodes 2] [--ovs host|daemonset] [--dual-stack] [--kube-proxy] [--empty]
//
// It stays until Ctrl-C, prints how to enter the cluster, and removes everything then. `run --down` removes what a
// killed one left; `run --build` only builds what is needed, `--images DIR` with the images' archives.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/twill-net/twill/test/cluster"
)

func main() {
	cluster.Hold()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var o cluster.Options
	flag.StringVar(&o.Name, "name", "run", "name of the cluster")
	flag.IntVar(&o.Nodes, "nodes", 2, "how many nodes")
	flag.BoolVar(&o.DualStack, "dual-stack", true, "IPv6 beside IPv4")
	flag.BoolVar(&o.KubeProxy, "kube-proxy", false, "let kube-proxy serve Services, in place of Twill")
	ovs := flag.String("ovs", string(cluster.OVSHost), "where Open vSwitch runs: host or daemonset")
	checkout := flag.String("checkout", ".", "root of the repository")
	empty := flag.Bool("empty", false, "do not install Twill")
	down := flag.Bool("down", false, "only remove what is left of a cluster")
	onlyBuild := flag.Bool("build", false, "only build what a cluster needs")
	keep := flag.String("images", "", "with --build: the directory for the images' archives; they are not built without")
	flag.Parse()
	o.OVS = cluster.OVSMode(*ovs)
	o.Log = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	if *down {
		return cluster.Remove(ctx, o.Name)
	}
	if o.Programs, err = cluster.Build(ctx, *checkout, o.Log); err != nil {
		return err
	}
	if *onlyBuild {
		if *keep != "" {
			_, err = o.Programs.BuildImages(ctx, *checkout, *keep)
		}
		return err
	}
	images, err := os.MkdirTemp("", "twill-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(images)
	if o.Images, err = o.Programs.BuildImages(ctx, *checkout, images); err != nil {
		return err
	}
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err = errors.Join(err, c.Down(end))
	}()
	if !*empty {
		if err := c.Install(ctx, *checkout); err != nil {
			return err
		}
		if err := c.Ready(ctx, 3*time.Minute); err != nil {
			return err
		}
		o.Log("nodes Ready")
		if err := c.Apply(ctx, *checkout, "coredns.yaml"); err != nil {
			return err
		}
	}
	fmt.Printf("\nkubectl:  %s\nnode1:    nsenter -t %d -m -u -i -n -p\nlogs:     %s/log\nCtrl-C ends it.\n", c.Shell("kubectl"), c.Nodes[0].PID(), c.Dir)
	<-ctx.Done()
	return nil
}
