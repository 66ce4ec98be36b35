package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const (
	// requestTimeout is how long a connection may take to send its request. The plugin sends at once.
	requestTimeout = 5 * time.Second
	// defaultGrace is how long commands in flight may take when the agent stops. Kubernetes gives a
	// pod 30 s.
	defaultGrace = 10 * time.Second
)

// Handler carries out the commands. Its methods are called concurrently; each must be idempotent. An
// *Error in the chain of an error keeps its code; others become ErrInternal. The context ends when the
// plugin has gone away.
type Handler interface {
	// Add attaches. It does not own netns, which is closed when it returns.
	Add(ctx context.Context, req *Request, netns *os.File) (*Result, error)
	// Del detaches, and succeeds for what is not attached.
	Del(ctx context.Context, req *Request) error
	// Check compares what is there with what was reported, see Result.Differs.
	Check(ctx context.Context, req *Request, netns *os.File) error
	// GC detaches what req.ValidAttachments does not list, as much as it can, and reports all errors.
	// The list is of the network req.Config.Name alone: under Multus a node has several, and what
	// belongs to another one must stay.
	GC(ctx context.Context, req *Request) error
	// Status says whether Add would work: nil, or an error of ErrNotAvailable or ErrLimited.
	Status(ctx context.Context, req *Request) error
}

// ServerConfig says where to listen and what to do.
type ServerConfig struct {
	// Socket is the absolute path of the unix socket; its directory is made if need be.
	Socket  string
	Handler Handler
	Log     logrus.FieldLogger
	// Observe, if not nil, is told of every command that was carried out, and of its error.
	Observe func(command string, took time.Duration, err error)
	// Grace bounds how long commands in flight may take once the context has ended; 10 s if zero.
	Grace time.Duration
}

// Serve answers plugins until ctx ends. Then it takes the socket away, lets the commands in flight
// finish, and returns nil. A socket left behind by a process that is gone is replaced; one that is
// being served is an error.
func Serve(ctx context.Context, c ServerConfig) error {
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	l, err := listen(c.Socket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()

	// Commands outlive ctx by the grace.
	inFlight, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var done sync.WaitGroup
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			l.Close()
			late := time.AfterFunc(c.Grace, cancel)
			done.Wait()
			late.Stop()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept CNI commands at %s: %w", c.Socket, err)
		}
		done.Go(func() {
			defer conn.Close()
			c.serve(ctx, inFlight, conn)
		})
	}
}

// serve handles one connection: reads a request until ctx ends, carries it out until inFlight does.
func (c ServerConfig) serve(ctx, inFlight context.Context, conn *net.UnixConn) {
	defer func() {
		if p := recover(); p != nil {
			c.respond(conn, nil, c.panicked(p))
		}
	}()
	start := time.Now()
	message, err := c.receive(ctx, conn)
	if message.netns != nil {
		defer message.netns.Close()
	}
	if errors.Is(err, errNoRequest) {
		return
	}
	var req *Request
	if err == nil {
		req, err = message.request()
	}
	if err != nil {
		c.Log.WithError(err).Warn("CNI: request refused")
		c.respond(conn, nil, err)
		return
	}

	gone, cancel := context.WithCancel(inFlight)
	defer cancel()
	go watch(conn, cancel)
	result, err := c.dispatch(gone, req, message.netns)
	if message.netns != nil {
		message.netns.Close() // before the answer: the runtime may unmount the namespace right after it
	}
	took := time.Since(start)
	if c.Observe != nil {
		c.Observe(req.Command, took, err)
	}
	c.logCommand(req, took, err)
	c.respond(conn, result, err)
}

// dispatch calls the handler. Its panic is an error of the one command.
func (c ServerConfig) dispatch(ctx context.Context, req *Request, netns *os.File) (result *Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.panicked(p)
		}
	}()
	switch req.Command {
	case CommandAdd:
		return c.Handler.Add(ctx, req, netns)
	case CommandDel:
		return nil, c.Handler.Del(ctx, req)
	case CommandCheck:
		return nil, c.Handler.Check(ctx, req, netns)
	case CommandGC:
		return nil, c.Handler.GC(ctx, req)
	default:
		return nil, c.Handler.Status(ctx, req)
	}
}

func (c ServerConfig) panicked(p any) error {
	c.Log.WithField("panic", p).Errorf("CNI: a command panicked\n%s", debug.Stack())
	return Errorf(ErrInternal, "the agent failed: %v", p).Advise("its log says where")
}

func (c ServerConfig) respond(conn *net.UnixConn, result *Result, err error) {
	resp := Response{Version: WireVersion, Result: result}
	if err != nil {
		resp = Response{Version: WireVersion, Error: asError(err)}
	}
	line, err := encode(resp)
	if err == nil {
		conn.SetWriteDeadline(time.Now().Add(requestTimeout))
		_, err = conn.Write(line)
	}
	if err != nil {
		c.Log.WithError(err).Warn("CNI: the plugin did not take its answer; the runtime will repeat the command")
	}
}

// logCommand writes the one line of a command. STATUS is asked every few seconds: its success is debug.
func (c ServerConfig) logCommand(req *Request, took time.Duration, err error) {
	fields := logrus.Fields{"command": req.Command, "took": took.Round(10 * time.Microsecond).String()}
	if req.ContainerID != "" {
		fields["sandbox"], fields["ifname"] = req.ContainerID, req.IfName
	}
	if req.Pod.Name != "" {
		fields["pod"] = req.Pod.Namespace + "/" + req.Pod.Name
	}
	log := c.Log.WithFields(fields)
	switch {
	case err != nil:
		log.WithError(err).Warn("CNI command failed")
	case req.Command == CommandStatus:
		log.Debug("CNI command")
	default:
		log.Info("CNI command")
	}
}

// watch calls gone when the plugin ends the connection, of which it sends nothing after its request.
func watch(conn *net.UnixConn, gone context.CancelFunc) {
	var b [1]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			gone()
			return
		}
	}
}

// authorize checks that the peer is root or the user that the agent runs as.
func authorize(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("credentials of a CNI peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("credentials of a CNI peer: %w", err)
	}
	if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return Errorf(ErrForbidden, "user %d (process %d) may not attach pods", cred.Uid, cred.Pid).
			Advise("run twill-cni as root, as container runtimes do")
	}
	return nil
}
