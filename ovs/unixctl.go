package ovs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Daemon is a kept-open connection to the control socket of ovs-vswitchd, which ovs-appctl(8) uses
// too: JSON-RPC 1.0, one object after the other. It ends with the daemon; then dial again.
type Daemon struct {
	path string
	conn net.Conn
	done chan struct{}

	mu      sync.Mutex // guards what follows, and writing
	next    uint64
	waiting map[uint64]chan<- reply
}

type request struct {
	Method string   `json:"method"`
	Params []string `json:"params"`
	ID     uint64   `json:"id"`
}

type reply struct {
	ID     uint64  `json:"id"`
	Result *string `json:"result"`
	Error  *string `json:"error"`
}

// DialDaemon connects to the ovs-vswitchd of runDir; empty means as in NewSwitch.
func DialDaemon(ctx context.Context, runDir string) (*Daemon, error) {
	runDir = orDefault(runDir)
	path, err := controlSocket(runDir)
	if err != nil {
		return nil, fmt.Errorf("ovs-vswitchd in %s: %w; %s", runDir, err, remedyDaemon)
	}
	d, err := DialControl(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("ovs-vswitchd: %w; %s", err, remedyDaemon)
	}
	return d, nil
}

// DialControl connects to the control socket of any daemon of Open vSwitch.
func DialControl(ctx context.Context, path string) (*Daemon, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	d := &Daemon{path: path, conn: conn, done: make(chan struct{}), waiting: map[uint64]chan<- reply{}}
	go d.read()
	return d, nil
}

// controlSocket finds the socket by the pid file or, where that is not shared with us, by its name.
func controlSocket(runDir string) (string, error) {
	pid, err := os.ReadFile(filepath.Join(runDir, "ovs-vswitchd.pid"))
	if err == nil {
		return filepath.Join(runDir, "ovs-vswitchd."+strings.TrimSpace(string(pid))+".ctl"), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(runDir, "ovs-vswitchd*.ctl"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("there is no ovs-vswitchd.pid, and %d control sockets", len(found))
	}
	return found[0], nil
}

// Call runs one command of ovs-vswitchd, such as "version" or "dpif/show", and returns its text.
func (d *Daemon) Call(ctx context.Context, method string, args ...string) (string, error) {
	answer, err := d.call(ctx, method, args)
	if err != nil {
		return "", fmt.Errorf("ovs-vswitchd (%s): %s: %w", d.path, method, err)
	}
	return answer, nil
}

func (d *Daemon) call(ctx context.Context, method string, args []string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	answer := make(chan reply, 1)
	id, err := d.send(ctx, method, append([]string{}, args...), answer)
	if err != nil {
		return "", err
	}
	select {
	case r := <-answer:
		switch {
		case r.Error != nil:
			return "", errors.New(strings.TrimSpace(*r.Error))
		case r.Result == nil:
			return "", errors.New("an answer with neither result nor error")
		}
		return *r.Result, nil
	case <-d.done:
		return "", errors.New("the connection was lost: the daemon died or was stopped")
	case <-ctx.Done():
		d.mu.Lock()
		delete(d.waiting, id)
		d.mu.Unlock()
		return "", ctx.Err()
	}
}

func (d *Daemon) send(ctx context.Context, method string, args []string, answer chan<- reply) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	b, err := json.Marshal(request{Method: method, Params: args, ID: d.next})
	if err != nil {
		return 0, err
	}
	deadline, _ := ctx.Deadline() // the zero time is none
	if err := d.conn.SetWriteDeadline(deadline); err != nil {
		return 0, fmt.Errorf("the connection was lost: %w", err)
	}
	if _, err := d.conn.Write(b); err != nil {
		d.conn.Close() // half a request may be written: nothing sensible can follow
		return 0, fmt.Errorf("the connection was lost: %w", err)
	}
	d.waiting[d.next] = answer
	return d.next, nil
}

// read hands answers out until the connection ends.
func (d *Daemon) read() {
	defer close(d.done)
	defer d.conn.Close()
	in := json.NewDecoder(d.conn)
	for {
		var r reply
		if err := in.Decode(&r); err != nil {
			return
		}
		d.mu.Lock()
		answer := d.waiting[r.ID]
		delete(d.waiting, r.ID)
		d.mu.Unlock()
		if answer != nil { // nil: the caller no longer waits
			answer <- r
		}
	}
}

// Trace is ofproto/trace: the way of a packet, described as a flow such as "in_port=3,icmp,nw_src=…",
// through the bridge. More may hold options such as "--ct-next", "trk,new" and a packet in hex.
func (d *Daemon) Trace(ctx context.Context, bridge, flow string, more ...string) (string, error) {
	return d.Call(ctx, "ofproto/trace", append([]string{bridge, flow}, more...)...)
}

// Done is closed as soon as the connection is lost: the daemon died, or Close was called.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Close ends the connection.
func (d *Daemon) Close() {
	d.conn.Close()
	<-d.done
}
