package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultConfName sorts before the files of other networks: runtimes take the first.
const DefaultConfName = "05-twill.conflist"

// InstallConfig says what to put where. Directories are made if need be.
type InstallConfig struct {
	// Plugin is the path of the twill-cni to copy.
	Plugin string
	// BinDir is where the runtime looks for plugins, normally /opt/cni/bin; ConfDir is where it looks
	// for networks, normally /etc/cni/net.d.
	BinDir, ConfDir string
	// ConfName is the name of the file in ConfDir; DefaultConfName if empty.
	ConfName string
	// Conflist is its content, see Conflist.
	Conflist []byte
}

// Install puts the plugin and then the network configuration in place, each in one step, and only if
// it differs from what is there; changed are the paths that did. Call it when the agent is ready: the
// runtime reports the node as ready once the network configuration is there. What an earlier Install
// left half written is removed.
func Install(c InstallConfig) (changed []string, err error) {
	plugin, err := os.ReadFile(c.Plugin)
	if err != nil {
		return nil, fmt.Errorf("install the CNI plugin: read the original: %w", err)
	}
	for _, f := range []file{
		{c.pluginPath(), plugin, 0o755},
		{c.confPath(), c.Conflist, 0o600},
	} {
		wrote, err := f.put()
		if err != nil {
			return changed, err
		}
		if wrote {
			changed = append(changed, f.path)
		}
	}
	return changed, nil
}

// Uninstall removes the network configuration, if our plugin is in it, and then the plugin; removed
// are the paths that were there. Pods that are still attached need the plugin for their DEL: drain
// the node first.
func Uninstall(c InstallConfig) (removed []string, err error) {
	remove := func(path string) error {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("uninstall %s: %w", path, err)
		}
		removed = append(removed, path)
		return nil
	}
	conflist, err := os.ReadFile(c.confPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("uninstall the network configuration: %w", err)
	case !ours(conflist):
		return nil, fmt.Errorf("uninstall %s: it does not name the plugin %s and is left alone: another network owns the file", c.confPath(), PluginType)
	}
	for _, path := range []string{c.confPath(), c.pluginPath()} {
		if err := errors.Join(remove(path), file{path: path}.clean()); err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func (c InstallConfig) pluginPath() string { return filepath.Join(c.BinDir, PluginType) }

func (c InstallConfig) confPath() string {
	name := c.ConfName
	if name == "" {
		name = DefaultConfName
	}
	return filepath.Join(c.ConfDir, name)
}

// file is a file as it should be.
type file struct {
	path    string
	content []byte
	mode    fs.FileMode
}

// put makes the file be there, whole, and says whether it had to.
func (f file) put() (bool, error) {
	wrote, err := f.replace()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return false, fmt.Errorf("install %s: %w: mount its directory writable into the agent's container, as root", f.path, err)
	}
	if err != nil {
		return false, fmt.Errorf("install %s: %w", f.path, err)
	}
	return wrote, nil
}

func (f file) replace() (bool, error) {
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	if err := f.clean(); err != nil {
		return false, err
	}
	if f.there() {
		return false, nil
	}
	temporary, err := f.write(dir)
	if err == nil {
		err = toDisk(temporary)
	}
	if err == nil {
		err = os.Rename(temporary, f.path)
	}
	if err != nil {
		return false, errors.Join(err, f.clean())
	}
	return true, toDisk(dir)
}

// write puts the content into a temporary file in dir and returns its name. No process may be
// forked meanwhile: until it executes something else the child holds the file open for writing, and a runtime that calls
// the plugin in that moment is told "text file busy".
func (f file) write(dir string) (name string, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	temporary, err := os.CreateTemp(dir, f.temporary())
	if err != nil {
		return "", err
	}
	_, err = temporary.Write(f.content)
	return temporary.Name(), errors.Join(err, temporary.Chmod(f.mode), temporary.Close())
}

// there says whether the file is as it should be.
func (f file) there() bool {
	info, err := os.Lstat(f.path)
	if err != nil || info.Mode() != f.mode || info.Size() != int64(len(f.content)) {
		return false
	}
	content, err := os.ReadFile(f.path)
	return err == nil && bytes.Equal(content, f.content)
}

// temporary is the pattern of the names that f has while it is being written. Its end is none that a
// runtime would take for a network configuration.
func (f file) temporary() string { return "." + filepath.Base(f.path) + ".new-*" }

// clean removes what was left of earlier writes.
func (f file) clean() error {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(f.path), f.temporary()))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// toDisk makes what is in a file, or the names in a directory, survive a power failure.
func toDisk(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
