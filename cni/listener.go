package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// maxSocketPath is the room of sockaddr_un, less its final zero.
const maxSocketPath = 107

// listener is the agent's socket in the file system.
type listener struct {
	*net.UnixListener
	path  string
	made  os.FileInfo
	close func() error
}

// listen puts a socket of mode 0600 at path, at once and complete: it is bound inside a new directory
// of mode 0700 beside it and then moved over whatever dead socket is there.
func listen(path string) (*listener, error) {
	fail := func(err error) (*listener, error) {
		return nil, fmt.Errorf("listen for CNI commands at %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	if !filepath.IsAbs(path) {
		return fail(errors.New("the path must be absolute"))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	if err := vacant(path); err != nil {
		return fail(err)
	}
	private, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(private)
	temporary := filepath.Join(private, "s")
	if len(temporary) > maxSocketPath {
		return fail(fmt.Errorf("the path has %d bytes, choose one about %d shorter", len(path), len(temporary)-maxSocketPath))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false) // it would unlink the temporary name
	made, err := publish(temporary, path)
	if err != nil {
		l.Close()
		return fail(err)
	}
	bound := &listener{UnixListener: l, path: path, made: made}
	bound.close = sync.OnceValue(bound.remove)
	return bound, nil
}

// vacant says whether path is free to be taken: nothing there, or a socket that nobody serves.
func vacant(path string) error {
	there, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if there.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("there is a file that is not a socket; remove it or choose another path")
	}
	if c, err := net.Dial("unix", path); err == nil || errors.Is(err, syscall.EAGAIN) { // at once, see exchange
		if c != nil {
			c.Close()
		}
		return fmt.Errorf("another process serves it; is a second agent running on this node?")
	}
	return nil
}

func publish(temporary, path string) (os.FileInfo, error) {
	if err := os.Chmod(temporary, 0o600); err != nil {
		return nil, err
	}
	made, err := os.Lstat(temporary)
	if err != nil {
		return nil, err
	}
	return made, os.Rename(temporary, path)
}

// Close stops listening and takes the socket away, unless another agent has put its own there. It may
// be called more than once.
func (l *listener) Close() error { return l.close() }

func (l *listener) remove() error {
	if there, err := os.Lstat(l.path); err == nil && os.SameFile(there, l.made) {
		os.Remove(l.path)
	}
	return l.UnixListener.Close()
}
