package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdVariable asks this program to become process 1 of a node: NAME DIR follow it in the environment's value.
const holdVariable = "TWILL_CLUSTER_HOLD"

// Hold makes this program process 1 of a node if it was started as that, and then never returns. Programs that
// use this package call it first thing in main or TestMain.
func Hold() {
	name := os.Getenv(holdVariable)
	if name == "" || os.Getpid() != 1 {
		return
	}
	os.Unsetenv(holdVariable)
	answer := os.NewFile(3, "answer")
	err := furnish(name, os.Getenv(holdVariable+"_DISK"))
	if err != nil {
		fmt.Fprintln(answer, err)
		os.Exit(1)
	}
	fmt.Fprintln(answer, heldAnswer)
	answer.Close()

	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGCHLD)
	for range signals { // whoever lost its parent becomes ours
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

const heldAnswer = "held"

// overlaid are the trees of the machine that a node sees, and writes to without changing the machine's.
func overlaid() []string { return []string{"/etc", "/opt", "/var"} }

// furnish arranges the file system of a node: everything of the machine to read, and what is written to /etc,
// /opt, /var and /run is the node's own. /run is lost when the node goes, the others are its disk.
func furnish(name, disk string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	kept := filepath.Join(disk, "cgroup")
	for _, dir := range []string{kept, disk + "/kubelet", disk + "/containerd"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	m := mounter{}
	m.mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	m.mount("proc", "/proc", "proc", 0, "")
	// A sysfs of this network namespace, with the machine's cgroups.
	m.mount("/sys/fs/cgroup", kept, "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.mount(kept, "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	if m.err == nil {
		m.err = unix.Unmount(kept, unix.MNT_DETACH)
	}
	for _, tree := range overlaid() {
		upper, work := disk+"/upper"+tree, disk+"/work"+tree
		m.err = errors.Join(m.err, os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755))
		m.mount("overlay", tree, "overlay", 0, "lowerdir="+tree+",upperdir="+upper+",workdir="+work)
	}
	m.mount("run", "/run", "tmpfs", 0, "mode=755")
	m.mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	for _, dir := range []string{"/run/lock", "/run/netns", "/run/containerd", "/run/openvswitch", "/var/lib/kubelet", "/var/lib/containerd",
		"/etc/cni/net.d", "/etc/openvswitch", "/opt/cni/bin", "/var/log/pods", "/var/log/containers"} {
		m.err = errors.Join(m.err, os.MkdirAll(dir, 0o755))
	}
	// containerd mounts overlays below, which cannot lie on an overlay themselves.
	m.mount(disk+"/kubelet", "/var/lib/kubelet", "", unix.MS_BIND, "")
	m.mount("", "/var/lib/kubelet", "", unix.MS_SHARED, "")
	m.mount(disk+"/containerd", "/var/lib/containerd", "", unix.MS_BIND, "")
	return m.err
}

// mounter mounts until something fails.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s: %w", target, err)
	}
}

// startHolder starts process 1 of a node in namespaces of its own and waits until its file system is arranged.
func (n *Node) startHolder() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	p, err := n.cluster.spawnFiles(n.Name+"-holder", attr, []*os.File{writer},
		[]string{holdVariable + "=" + n.Name, holdVariable + "_DISK=" + n.path()}, self)
	writer.Close()
	if err != nil {
		return err
	}
	said, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	if string(said) != heldAnswer+"\n" {
		return fmt.Errorf("%s: process 1: %s", n.Name, said)
	}
	n.holder = p
	return nil
}
