package ovsd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dbServer = "ovsdb-server"
	vswitchd = "ovs-vswitchd"
)

// Pids are the process IDs of ovsdb-server and ovs-vswitchd, 0 for one that does not run.
func (o *OVS) Pids() (db, daemon int) { return o.pid(dbServer), o.pid(vswitchd) }

// StartDB makes the database if there is none and starts ovsdb-server alone.
func (o *OVS) StartDB(ctx context.Context) error {
	if o.pid(dbServer) != 0 {
		return nil
	}
	conf := o.path("conf.db")
	if _, err := os.Stat(conf); errors.Is(err, os.ErrNotExist) {
		if _, err := o.Run(ctx, "ovsdb-tool", "create", conf, o.c.Schema); err != nil {
			return err
		}
	}
	if _, err := o.Run(ctx, dbServer, conf, "--remote=punix:"+o.path("db.sock"),
		"--pidfile="+o.path(dbServer+".pid"), "--log-file="+o.path(dbServer+".log"),
		"--unixctl="+o.path(dbServer+".ctl"), "-vconsole:off", "--detach"); err != nil {
		return err
	}
	if o.c.Schema != vswitchSchema {
		return nil
	}
	return o.vsctl(ctx, "init", "--", "set", "Open_vSwitch", ".", "external_ids:system-id="+filepath.Base(o.c.Dir))
}

// StartDaemon starts ovs-vswitchd alone and returns when it has configured what the database says.
// With restoreWait it first sets other_config:flow-restore-wait=true, as ovs-ctl(8) does when it
// restarts the daemon: then no packet passes until the key is removed.
func (o *OVS) StartDaemon(ctx context.Context, restoreWait bool) error {
	if o.pid(vswitchd) != 0 {
		return nil
	}
	if restoreWait {
		if err := o.vsctl(ctx, "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true"); err != nil {
			return err
		}
	}
	args := []string{o.Endpoint(), "--pidfile=" + o.path(vswitchd+".pid"), "--log-file=" + o.path(vswitchd+".log"),
		"-vconsole:off", "--detach"}
	if o.c.Dummy {
		args = append(args, "--enable-dummy=override")
	}
	_, err := o.Run(ctx, vswitchd, args...)
	return err
}

// StopDaemon ends ovs-vswitchd by SIGTERM; KillDaemon by SIGKILL, which is a crash and leaves its pid
// file and sockets lying about. Both return when it is gone, and are content when it was not there.
func (o *OVS) StopDaemon(ctx context.Context) error { return o.end(ctx, vswitchd, unix.SIGTERM) }

// KillDaemon is described at StopDaemon.
func (o *OVS) KillDaemon(ctx context.Context) error { return o.end(ctx, vswitchd, unix.SIGKILL) }

// StopDB ends ovsdb-server alone.
func (o *OVS) StopDB(ctx context.Context) error { return o.end(ctx, dbServer, unix.SIGTERM) }

// Stop ends both daemons. The directory stays. Stopping twice is no error.
func (o *OVS) Stop(ctx context.Context) error {
	return errors.Join(o.StopDaemon(ctx), o.StopDB(ctx))
}

// end signals a daemon and waits until it is gone; one that ignores SIGTERM for 5 s is killed.
func (o *OVS) end(ctx context.Context, name string, sig unix.Signal) error {
	pid := o.pid(name)
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watching %s (pid %d): %w", name, pid, err)
	}
	defer unix.Close(fd)
	if o.pid(name) != pid { // it went, and its number may be another's by now
		return nil
	}
	for _, s := range []unix.Signal{sig, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ending %s (pid %d): %w", name, pid, err)
		}
		if gone, err := waitGone(ctx, fd, 5*time.Second); err != nil || gone {
			return err
		}
	}
	return fmt.Errorf("%s (pid %d) is still there after SIGKILL", name, pid)
}

// waitGone waits for the end of the process behind a pidfd.
func waitGone(ctx context.Context, fd int, limit time.Duration) (bool, error) {
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// pid reads a pid file and believes it only if that process was started for this directory.
func (o *OVS) pid(name string) int {
	b, err := os.ReadFile(o.path(name + ".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(args), o.c.Dir+"/") {
		return 0
	}
	return pid
}

func (o *OVS) vsctl(ctx context.Context, args ...string) error {
	_, err := o.Run(ctx, "ovs-vsctl", append([]string{"--db=" + o.Endpoint(), "--timeout=10", "--no-wait", "--"}, args...)...)
	return err
}
