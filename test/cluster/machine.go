package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kubeletSysctls are those of the whole machine that a kubelet or kube-proxy sets.
func kubeletSysctls() []string {
	return []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/netfilter/nf_conntrack_max",
	}
}

// saveSysctls writes down what they are, unless a killed run has: then they are not what they should be.
func saveSysctls(name string) error {
	var saved []byte
	for _, sysctl := range kubeletSysctls() {
		value, err := os.ReadFile("/proc/sys/" + sysctl)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		saved = fmt.Appendf(saved, "%s=%s\n", sysctl, bytes.TrimSpace(value))
	}
	if _, err := os.Stat(sysctlFile(name)); err == nil {
		return nil
	}
	return os.WriteFile(sysctlFile(name), saved, 0o600)
}

func sysctlFile(name string) string { return directory(name) + ".sysctls" }

// restoreSysctls puts back what saveSysctls wrote down.
func restoreSysctls(name string) error {
	saved, err := os.ReadFile(sysctlFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(saved)) {
		sysctl, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		now, err := os.ReadFile("/proc/sys/" + sysctl)
		if err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0); err != nil {
			return fmt.Errorf("put back sysctl %s=%s: %w", sysctl, value, err)
		}
	}
	return os.Remove(sysctlFile(name))
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroupV2 says whether the machine has the unified hierarchy only.
func cgroupV2() bool {
	_, err := os.Stat(cgroupRoot + "/cgroup.controllers")
	return err == nil
}

// cgroupTrees are the hierarchies in which a node has a group of its own.
func cgroupTrees() []string {
	if cgroupV2() {
		return []string{cgroupRoot}
	}
	all, _ := filepath.Glob(cgroupRoot + "/*")
	var trees []string
	for _, t := range all {
		if info, err := os.Lstat(t); err == nil && info.IsDir() { // links are the same tree by another name
			trees = append(trees, t)
		}
	}
	return trees
}

// addCgroups makes the groups that a kubelet's cgroupRoot names. A cpuset takes no process before it has CPUs.
func addCgroups(group string) error {
	for _, tree := range cgroupTrees() {
		dir := filepath.Join(tree, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(tree, file)); err == nil && !cgroupV2() {
				if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func groupOf(cluster, node string) string { return "twill-cluster-" + cluster + "-" + node }

// removeCgroups removes the groups of a cluster's nodes, children first. Their processes are gone.
func removeCgroups(name string) error {
	var failed []error
	for _, tree := range cgroupTrees() {
		groups, _ := filepath.Glob(filepath.Join(tree, groupOf(name, "*")))
		for _, group := range groups {
			var dirs []string
			_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				if err := removeCgroup(dirs[i]); err != nil {
					failed = append(failed, err)
				}
			}
		}
	}
	return errors.Join(failed...)
}

// removeCgroup removes one group. The kernel counts a process out of it a moment after its end.
func removeCgroup(dir string) error {
	return Eventually(context.Background(), 5*time.Second, func(context.Context) error {
		err := os.Remove(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
