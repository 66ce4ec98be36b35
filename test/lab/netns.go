package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) and container runtimes keep the names of network namespaces.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// namespace is the full name of one of the lab's namespaces.
func (l *Lab) namespace(name string) string { return "twl-" + l.Name + "-" + name }

// namespaces lists the lab's namespaces, finished or not. No lab's name contains a dash, so no lab
// finds another one's.
func (l *Lab) namespaces() []string {
	all, _ := filepath.Glob(netnsPath(l.namespace("*")))
	for i := range all {
		all[i] = filepath.Base(all[i])
	}
	return all
}

// inNetNS calls f on a thread that is inside the namespace. Processes that f starts are inside, too;
// unlike those of `ip netns exec` they keep the mounts, /sys among them, of everybody else.
func inNetNS(name string, f func() error) error { return Inside(netnsPath(name), f) }

// Inside calls f on a thread that has entered the network namespace at a path, such as a Pod's NetNS. Sockets
// that f opens stay there.
func Inside(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread dies with this goroutine
		done <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", path, err)
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return f()
		}()
	}()
	return <-done
}

// ip feeds lines to one `ip -batch`, inside the namespace unless that is empty. It stops at the
// first line that fails.
func ip(ctx context.Context, namespace string, lines ...string) error {
	args := []string{"-batch", "-"}
	if namespace != "" {
		args = append([]string{"-n", namespace}, args...)
	}
	return run(ctx, "", nil, strings.Join(lines, "\n"), append([]string{"ip"}, args...)...)
}

// run executes a tool inside a namespace, or where we are when that is empty, and turns its stderr
// into the error.
func run(ctx context.Context, namespace string, env []string, stdin string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Who is killed while it builds a lab leaves nobody behind who goes on building it. The signal comes when
	// the thread that started the tool ends (prctl(2)), so that is kept.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var err error
	if namespace == "" {
		runtime.LockOSThread()
		err = cmd.Run()
		runtime.UnlockOSThread()
	} else {
		err = inNetNS(namespace, cmd.Run)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	what := strings.Join(argv, " ")
	if stdin != "" {
		what += " <<< " + stdin
	}
	return fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(out.String()))
}
