package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spawn starts a program that outlives us: in the namespace, in a session of its own, its output
// appended to the log file. It returns the process ID.
func spawn(namespace, logFile string, env []string, argv ...string) (int, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := inNetNS(namespace, cmd.Start); err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go cmd.Wait() // should we live longer than it does
	awaitCommandLine(cmd.Process.Pid)
	return cmd.Process.Pid, nil
}

// awaitCommandLine waits until the kernel shows the command line, which comes a moment after exec has
// succeeded: pidOf would take the process for another one. One that has ended already has none.
func awaitCommandLine(pid int) {
	for range 1000 {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(cmdline) > 0 {
			return
		}
		time.Sleep(time.Millisecond) // nothing announces it
	}
}

// pidOf reads a pidfile. It returns 0 unless the process is alive and has mark in its command line:
// process IDs are used again.
func pidOf(pidfile, mark string) int {
	data, err := os.ReadFile(pidfile)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	// The command line of a zombie is empty.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), mark) {
		return 0
	}
	return pid
}

// end signals a process and waits until it is gone, or kills it after ten seconds. Being gone
// already is no error.
func end(ctx context.Context, pid int, signal unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: pidfd_open: %w", pid, err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(10 * time.Second)
	for _, s := range []unix.Signal{signal, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %s: %w", pid, s, err)
		}
		gone, err := waitGone(ctx, fd, deadline)
		if gone || err != nil {
			return err
		}
		deadline = deadline.Add(10 * time.Second)
	}
	return fmt.Errorf("process %d does not end, not even by SIGKILL", pid)
}

// waitGone waits for the end of the process behind a pidfd.
func waitGone(ctx context.Context, fd int, deadline time.Time) (bool, error) {
	for ctx.Err() == nil && time.Now().Before(deadline) {
		// The kernel wakes us at the process's end; the time-out is for looking at ctx.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, err
		}
	}
	return false, ctx.Err()
}

// removeNamespaces ends every process inside the namespaces, and those that have dir in their
// OVS_RUNDIR, and removes the namespaces. A network namespace lives as long as somebody is in it,
// whatever becomes of its name; and what a killed `twill-lab up` was just starting may be on its way
// into it.
func removeNamespaces(ctx context.Context, names []string, dir string) error {
	for range 10 { // somebody inside may be starting others
		pids, err := inside(names, dir)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		if err := each(ctx, pids, func(ctx context.Context, pid int) error {
			return end(ctx, pid, unix.SIGKILL)
		}); err != nil {
			return err
		}
	}
	for _, name := range names {
		// A namespace that was only half made is a plain file: nothing to unmount.
		if err := unix.Unmount(netnsPath(name), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", netnsPath(name), err)
		}
		if err := os.Remove(netnsPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inside lists the processes that live in one of the namespaces or were started with an OVS_RUNDIR
// below dir.
func inside(names []string, dir string) ([]int, error) {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	var namespaces []os.FileInfo
	for _, name := range names {
		if ns, err := os.Stat(netnsPath(name)); err == nil && !os.SameFile(ns, own) {
			namespaces = append(namespaces, ns)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, process := range processes {
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil || pid == os.Getpid() {
			continue
		}
		of, err := os.Stat(process + "/ns/net")
		if err != nil {
			continue // it ended meanwhile, or is a zombie
		}
		environ, _ := os.ReadFile(process + "/environ")
		if slices.ContainsFunc(namespaces, func(ns os.FileInfo) bool { return os.SameFile(of, ns) }) ||
			dir != "" && bytes.Contains(append([]byte{0}, environ...), []byte("\x00OVS_RUNDIR="+dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
