package ovs

import (
	"bytes"
	"context"
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
}

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
