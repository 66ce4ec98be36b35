package cluster

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

// process is a program of the cluster that runs until it is ended.
type process struct {
	name string
	pid  int
	done chan struct{} // closed when it has ended
	// entered says that nsenter started it in a process namespace.
	entered bool
}

// spawn starts a program of the cluster, in a session of its own, and notes its process ID. What it prints goes
// into the log of its name.
func (c *Cluster) spawn(name string, argv ...string) (*process, error) {
	return c.spawnFiles(name, &syscall.SysProcAttr{}, nil, nil, argv...)
}

func (c *Cluster) spawnFiles(name string, attr *syscall.SysProcAttr, files []*os.File, env []string, argv ...string) (*process, error) {
	log, err := os.OpenFile(c.path("log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Env = append(cmd.Env, clusterVariable+"="+c.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	attr.Setsid = true
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }() // its log says why it ended
	c.mu.Lock()
	c.processes = append(c.processes, p)
	c.mu.Unlock()
	return p, nil
}

// clusterVariable marks every process of a cluster, so that another run can end what a killed one left.
const clusterVariable = "TWILL_CLUSTER_DIR"

// process finds a running program by name.
func (c *Cluster) process(name string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range slices.Backward(c.processes) {
		if p.name == name {
			return p
		}
	}
	return nil
}

// stop ends a program by a signal and waits for its end; by SIGKILL after five seconds. Where nsenter(1) started it
// the program is nsenter's child, and nsenter ends with it.
func (p *process) stop(signal syscall.Signal) {
	for _, s := range []syscall.Signal{signal, syscall.SIGKILL} {
		select {
		case <-p.done:
			return
		default:
		}
		target := p.pid
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.pid, p.pid))
		if child, err := strconv.Atoi(strings.TrimSpace(string(children))); err == nil && p.entered {
			target = child
		}
		_ = syscall.Kill(target, s)
		select {
		case <-p.done:
			return
		case <-time.After(5 * time.Second):
		}
	}
}

// Down ends the cluster and removes everything it made: processes, namespaces, mounts, cgroups, files. The
// machine's sysctls are as before.
func (c *Cluster) Down(ctx context.Context) error {
	c.mu.Lock()
	all := slices.Clone(c.processes)
	c.mu.Unlock()
	// kube-apiserver takes ten seconds to drain, and nobody is left to be served.
	for _, p := range slices.Backward(all) {
		p.stop(syscall.SIGKILL)
	}
	return Remove(ctx, c.Name)
}

// Remove removes what a cluster of that name left, whoever started it. None is no error.
func Remove(ctx context.Context, name string) error {
	dir := directory(name)
	for range 20 { // somebody may just be starting others
		pids := marked(dir)
		if len(pids) == 0 {
			break
		}
		if err := each(pids, killAndWait); err != nil {
			return err
		}
	}
	if pids := marked(dir); len(pids) > 0 {
		return fmt.Errorf("processes %v of cluster %s do not end", pids, name)
	}
	spaces, _ := filepath.Glob(netnsDir + "/" + namespacePrefix + name + "-*")
	for _, path := range spaces {
		if err := run(ctx, "", "ip", "netns", "del", filepath.Base(path)); err != nil {
			return err
		}
	}
	if err := removeCgroups(name); err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return errors.Join(restoreSysctls(name), os.RemoveAll(dir))
}

// marked lists the processes that carry the mark of the cluster in this directory. Containers do not: their
// process 1 is killed with the node's.
func marked(dir string) []int {
	var pids []int
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range found {
		pid, err := strconv.Atoi(filepath.Base(p))
		environ, errRead := os.ReadFile(p + "/environ")
		if err == nil && errRead == nil && pid != os.Getpid() &&
			bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+clusterVariable+"="+dir+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func killAndWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

// unmountBelow undoes mounts in our own mount namespace; there are some only if a node's holder was killed early.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", fields[1], err)
			}
		}
	}
	return nil
}

// run executes a tool and turns what it said into the error.
func run(ctx context.Context, stdin string, argv ...string) error {
	_, err := output(ctx, stdin, argv...)
	return err
}

// output executes a tool and returns its standard output.
func output(ctx context.Context, stdin string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 2 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()+" "+stdin))
	}
	return out.String(), nil
}

// LogTails is the end of every log, for an error that has to explain itself.
func (c *Cluster) LogTails(lines int) string {
	var out strings.Builder
	logs, _ := filepath.Glob(c.path("log", "*.log"))
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil || len(bytes.TrimSpace(data)) == 0 {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&out, "--- %s\n%s\n", filepath.Base(path), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	return out.String()
}
