package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// errNoRequest is a connection that ended before its first byte: somebody looked whether we are there.
var errNoRequest = errors.New("connection without a request")

// message is a request as it came: a line, and the file descriptor that travelled with it.
type message struct {
	line  []byte
	netns *os.File
}

// receive reads one message. It gives up when ctx ends: a command that has not been read by then has
// not begun.
func (c ServerConfig) receive(ctx context.Context, conn *net.UnixConn) (m message, err error) {
	conn.SetReadDeadline(time.Now().Add(requestTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	if err := authorize(conn); err != nil {
		return m, err
	}
	err = m.read(conn)
	if !stop() && err == nil || err != nil && ctx.Err() != nil {
		return m, Errorf(ErrTryAgain, "the agent is stopping").Advise("another one will start soon")
	}
	conn.SetReadDeadline(time.Time{})
	return m, err
}

func (m *message) read(conn *net.UnixConn) error {
	chunk := make([]byte, 16<<10)
	rights := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(chunk, rights)
		n, oobn = max(n, 0), max(oobn, 0) // both may be -1 beside an error
		files, rightsErr := descriptors(rights[:oobn])
		if rightsErr == nil && (flags&unix.MSG_CTRUNC != 0 || len(files) > 1 || len(files) == 1 && m.netns != nil) {
			rightsErr = Errorf(ErrDecoding, "the plugin sent more than one file descriptor")
		}
		if rightsErr != nil {
			closeAll(files)
			return rightsErr
		}
		if len(files) == 1 {
			m.netns = files[0]
		}
		line, _, complete := bytes.Cut(chunk[:n], []byte("\n"))
		m.line = append(m.line, line...)
		switch {
		case len(m.line) > maxMessage:
			return Errorf(ErrDecoding, "the request is longer than %d bytes", maxMessage)
		case complete:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return Errorf(ErrDecoding, "the plugin did not finish its request within %v", requestTimeout)
		case n == 0 && len(m.line) == 0 && (err == nil || errors.Is(err, io.EOF)):
			return errNoRequest
		case n == 0 || err != nil:
			return Errorf(ErrDecoding, "the request ends within a line")
		}
	}
}

// request decodes and checks the message.
func (m message) request() (*Request, error) {
	req := &Request{}
	if err := decode(m.line, "plugin", req); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{CommandAdd, CommandDel, CommandCheck, CommandGC, CommandStatus}, req.Command) {
		return nil, Errorf(ErrDecoding, "the request is of an unknown command %q", req.Command)
	}
	attachment := req.Command != CommandGC && req.Command != CommandStatus
	if attachment && (req.ContainerID == "" || req.IfName == "") {
		return nil, Errorf(ErrDecoding, "the request %s lacks containerID or ifname", req.Command)
	}
	if (req.Command == CommandAdd || req.Command == CommandCheck) && m.netns == nil {
		return nil, Errorf(ErrInvalidNetNS, "the request %s came without the network namespace", req.Command)
	}
	return req, nil
}

// descriptors takes the files out of the control messages of one read.
func descriptors(oob []byte) (files []*os.File, err error) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message of a CNI request: %w", err)
	}
	for _, control := range controls {
		fds, err := unix.ParseUnixRights(&control)
		if err != nil {
			continue // credentials, or what else we did not ask for
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "pod network namespace"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
