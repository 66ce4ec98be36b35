package ovs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Executor runs the tools of Open vSwitch. It is the seam for tests, and the only way that this
// module starts processes.
type Executor interface {
	// LookPath finds a program, as exec.LookPath does.
	LookPath(program string) (path string, err error)
	// Run runs a program to its end, or kills it when ctx ends. stdin may be nil.
	Run(ctx context.Context, stdin io.Reader, path string, args ...string) (stdout, stderr string, err error)
	// Start starts a program that is going to wait for its standard input. It is killed when ctx ends.
	Start(ctx context.Context, path string, args ...string) (Process, error)
}

// Process is a program that was started and waits for its standard input.
type Process interface {
	// Finish gives it all of its input and returns when it has ended, or kills it when ctx ends. The
	// error wraps errLost when the program ended by a signal: then it may not have read anything.
	Finish(ctx context.Context, stdin string) (stdout, stderr string, err error)
}

var errLost = errors.New("the program was killed")

// System is the Executor that really runs programs.
func System() Executor { return system{} }

type system struct{}

func (system) LookPath(program string) (string, error) { return exec.LookPath(program) }

func (system) Run(ctx context.Context, stdin io.Reader, path string, args ...string) (string, string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // for output pipes that a killed program left open
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), errs.String(), err
}

func (system) Start(ctx context.Context, path string, args ...string) (Process, error) {
	p := &process{cmd: exec.CommandContext(ctx, path, args...)}
	p.cmd.WaitDelay = time.Second
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return p, p.cmd.Start()
}

type process struct {
	cmd       *exec.Cmd
	stdin     io.WriteCloser
	out, errs bytes.Buffer
}

func (p *process) Finish(ctx context.Context, stdin string) (string, string, error) {
	defer context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })() // it may have ended just now
	_, _ = io.WriteString(p.stdin, stdin)                               // one that does not read it says why by how it ends
	p.stdin.Close()
	err := p.cmd.Wait()
	switch {
	case err != nil && ctx.Err() != nil:
		err = ctx.Err()
	case err != nil && !p.cmd.ProcessState.Exited():
		err = fmt.Errorf("%w: %w", errLost, err)
	}
	return p.out.String(), p.errs.String(), err
}
