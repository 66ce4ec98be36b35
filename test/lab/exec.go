package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Command is a program to run inside the lab.
type Command struct {
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Output is what a command said.
type Output struct {
	Stdout, Stderr string
	// Code is the exit code, or 128 plus the number of the signal that ended it.
	Code int
}

// Exec runs a command in a pod, named by name or namespace/name. A command that ran is no error,
// whatever its exit code.
func (l *Lab) Exec(ctx context.Context, pod string, args ...string) (Output, error) {
	return capture(func(c Command) (int, error) { return l.RunInPod(ctx, pod, c) }, args)
}

// NodeExec runs a command on a node, with the node's environment (see [Node.Env]).
func (l *Lab) NodeExec(ctx context.Context, node string, args ...string) (Output, error) {
	return capture(func(c Command) (int, error) { return l.RunOnNode(ctx, node, c) }, args)
}

// OutsideExec runs a command on the host beyond the nodes.
func (l *Lab) OutsideExec(ctx context.Context, args ...string) (Output, error) {
	return capture(func(c Command) (int, error) { return l.RunOutside(ctx, c) }, args)
}

// RunOutside runs a command on the host beyond the nodes and returns its exit code.
func (l *Lab) RunOutside(ctx context.Context, c Command) (int, error) {
	return c.run(ctx, l.outsideNS(), nil)
}

// RunInPod runs a command in a pod and returns its exit code.
func (l *Lab) RunInPod(ctx context.Context, pod string, c Command) (int, error) {
	p, err := l.Pod(pod)
	if err != nil {
		return 0, err
	}
	return c.run(ctx, filepath.Base(p.NetNS), nil)
}

// RunOnNode runs a command on a node and returns its exit code.
func (l *Lab) RunOnNode(ctx context.Context, node string, c Command) (int, error) {
	n, err := l.Node(node)
	if err != nil {
		return 0, err
	}
	return c.run(ctx, n.NetNS(), n.Env())
}

func capture(run func(Command) (int, error), args []string) (Output, error) {
	var stdout, stderr bytes.Buffer
	code, err := run(Command{Args: args, Stdout: &stdout, Stderr: &stderr})
	return Output{Stdout: stdout.String(), Stderr: stderr.String(), Code: code}, err
}

func (c Command) run(ctx context.Context, namespace string, env []string) (int, error) {
	if len(c.Args) == 0 {
		return 0, errors.New("no command given: put it after --")
	}
	env = append(os.Environ(), env...)
	program, err := lookPath(c.Args[0], env)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, program, c.Args[1:]...)
	cmd.Args[0] = c.Args[0]
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Second
	if err := inNetNS(namespace, cmd.Start); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
			return 128 + int(s.Signal()), ctx.Err()
		}
		return exit.ExitCode(), ctx.Err()
	}
	return 0, err
}

// lookPath finds a program by the PATH it will run with, which is not ours.
func lookPath(program string, env []string) (string, error) {
	if filepath.Base(program) != program {
		return program, nil
	}
	var path string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if found, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s: %w in PATH %s", program, exec.ErrNotFound, path)
}
