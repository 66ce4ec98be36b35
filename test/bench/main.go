// Program bench measures Twill on this machine, each time beside something that does the same in the
// simplest way, in the same run: absolute numbers depend on the machine and on who else uses it, the
// ratios much less. It prints Markdown on standard output and progress on standard error.
//
//	go run ./test/bench                 everything, some minutes
//	go run ./test/bench -only traffic   one part: cni, nodes, services, connections, policies or traffic
//
// It needs root and bin/ of `make build`. Everything happens in labs (see test/lab) of its own, named by
// -name, which are gone afterwards, also when it is interrupted; after a kill -9 the next run clears them up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/cluster"
	"github.com/twill-net/twill/test/lab"
)

// limit bounds the whole run.
const limit = 40 * time.Minute

// part is one of the things that are measured.
type part struct {
	name  string
	run   func(ctx context.Context, labName string) error
	asked bool // run only when it is named
}

func main() {
	cluster.Hold()
	only := flag.String("only", "", "parts to run, separated by commas: cni, nodes, services, connections, policies, traffic, api; empty means all but connections and api, which build Kubernetes the first time")
	name := flag.String("name", "bench", "prefix of the labs' names")
	flag.Parse()
	if err := run(*only, *name); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(only, name string) error {
	parts := []part{
		{"cni", benchCNI, false}, {"nodes", benchNodes, false}, {"services", benchServices, false},
		{"connections", benchConnections, true}, {"policies", benchPolicies, false}, {"traffic", benchTraffic, false}, {"api", benchAPI, true},
	}
	var names, wanted []string
	for _, p := range parts {
		names = append(names, p.name)
		if !p.asked {
			wanted = append(wanted, p.name)
		}
	}
	if only != "" {
		wanted = strings.Split(only, ",")
	}
	for _, w := range wanted {
		if !slices.Contains(names, w) {
			return fmt.Errorf("-only %q: there are %s", w, strings.Join(names, ", "))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	describeMachine(ctx)
	var errs []error
	for _, p := range parts {
		if ctx.Err() == nil && slices.Contains(wanted, p.name) {
			if err := p.run(ctx, name+p.name); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			}
		}
	}
	fmt.Printf("\nLoad average at the end: %s.\n", loadAverage())
	return errors.Join(append(errs, ctx.Err())...)
}

// withLab lends a lab. What a run that was killed left of it is cleared up first.
func withLab(ctx context.Context, o lab.Options, use func(*lab.Lab) error) (err error) {
	if err := lab.Down(ctx, o.Name); err != nil {
		return err
	}
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.Down(ctx))
	}()
	return use(l)
}

// onlyNode is the node of a lab that has one, with a connection to its ovs-vswitchd.
func onlyNode(ctx context.Context, l *lab.Lab) (*lab.Node, *ovs.Daemon, error) {
	n, err := l.Node("node-1")
	if err != nil {
		return nil, nil, err
	}
	d, err := ovs.DialDaemon(ctx, n.OVS().RunDir())
	return n, d, err
}

// say reports progress.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().UTC().Format("15:04:05 ")+format+"\n", args...)
}
