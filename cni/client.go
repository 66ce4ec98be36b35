package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ask sends req to the agent, with netns if there is one, and waits for the answer until ctx ends. An
// error of the agent's is returned as it came; when there is no answer the error is of the code with
// which the runtime repeats the command (for STATUS: with which it knows that nothing can be served).
func ask(ctx context.Context, req *Request, netns *os.File) (*Response, error) {
	line, err := encode(req)
	if err != nil {
		return nil, err
	}
	answer, err := exchange(ctx, req, line, netns)
	if err != nil {
		return nil, err
	}
	var resp Response
	if err := decode(answer, "agent", &resp); err != nil {
		return nil, err
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return &resp, nil
}

func exchange(ctx context.Context, req *Request, line []byte, netns *os.File) ([]byte, error) {
	code := ErrTryAgain
	if req.Command == CommandStatus {
		code = ErrNotAvailable
	}
	// A unix socket takes or refuses a connection at once, also with its queue full (connect(2), EAGAIN). A
	// time limit of its own would only hit a plugin that a crowded machine does not let run.
	c, err := new(net.Dialer).DialContext(ctx, "unix", req.Config.Socket)
	if err != nil {
		return nil, Errorf(code, "the agent cannot be reached at %s: %w", req.Config.Socket, reason(err)).
			Advise("see whether the twill agent of this node runs, and that the key socket of the network configuration names its socket")
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()

	// An agent that refuses a message may answer before it has read all of it: look for an answer
	// also when sending has failed.
	sendErr := send(c.(*net.UnixConn), line, netns)
	answer, err := receive(c)
	switch {
	case err == nil:
		return answer, nil
	case ctx.Err() != nil:
		return nil, Errorf(code, "the agent at %s did not answer %s in time: %w", req.Config.Socket, req.Command, ctx.Err()).
			Advise("the log of the twill agent of this node says what it waits for")
	case sendErr != nil:
		err = sendErr
	}
	return nil, Errorf(code, "the agent at %s ended the connection without an answer to %s: %w", req.Config.Socket, req.Command, err).
		Advise("it has probably been restarted; if this happens again, see its log")
}

// send writes a line; netns travels with its first byte.
func send(c *net.UnixConn, line []byte, netns *os.File) error {
	var rights []byte
	if netns != nil {
		rights = unix.UnixRights(int(netns.Fd()))
	}
	n, _, err := c.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

func receive(c net.Conn) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(c, maxMessage)).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == maxMessage {
		return nil, fmt.Errorf("the answer is longer than %d bytes", maxMessage)
	}
	return line, err
}

// reason shortens a dial error to its cause: the path is told already.
func reason(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("there is no such socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nobody listens there")
	case errors.Is(err, syscall.EAGAIN):
		return errors.New("its queue is full, the agent does not take connections")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("permission denied, only root may attach pods")
	}
	return err
}
