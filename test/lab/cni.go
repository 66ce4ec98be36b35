package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// CNI is a node's container runtime as far as networking goes: it executes the configuration that
// comes first in the node's directory, as containerd and CRI-O do.
type CNI struct {
	conf   *libcni.NetworkConfigList
	libcni *libcni.CNIConfig
}

// CNI loads the node's configuration.
func (l *Lab) CNI(node string) (*CNI, error) {
	n, err := l.Node(node)
	if err != nil {
		return nil, err
	}
	return n.cni()
}

func (n *Node) cni() (*CNI, error) {
	c, err := LoadCNI(CNIConfig{
		ConfDir: n.path("cni", "net.d"), BinDir: n.path("cni", "bin"), CacheDir: n.path("cni", "cache"), NetNS: n.NetNS(),
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w: the agent installs it when it is ready, see %s", n.Name, err, n.LogFile())
	}
	return c, nil
}

// CNIConfig says where a container runtime finds its plugins.
type CNIConfig struct {
	// ConfDir holds the network configurations, of which the first by name counts; BinDir holds the
	// plugins, CacheDir what libcni keeps of each attachment.
	ConfDir, BinDir, CacheDir string
	// NetNS is the name of the network namespace that the plugins run in.
	NetNS string
}

// LoadCNI loads a configuration of anybody's.
func LoadCNI(c CNIConfig) (*CNI, error) {
	files, err := libcni.ConfFiles(c.ConfDir, []string{".conflist"})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no CNI configuration in %s", c.ConfDir)
	}
	conf, err := libcni.ConfListFromFile(slices.Min(files))
	if err != nil {
		return nil, err
	}
	exec := &nodeExec{RawExec: &invoke.RawExec{}, namespace: c.NetNS}
	return &CNI{conf: conf, libcni: libcni.NewCNIConfigWithCacheDir([]string{c.BinDir}, c.CacheDir, exec)}, nil
}

// Add attaches the pod's namespace.
func (c *CNI) Add(ctx context.Context, p Pod) (*current.Result, error) {
	result, err := c.libcni.AddNetworkList(ctx, c.conf, runtimeConf(p))
	if err != nil {
		return nil, explain(err)
	}
	return current.NewResultFromResult(result)
}

// Del detaches the pod's namespace.
func (c *CNI) Del(ctx context.Context, p Pod) error {
	return explain(c.libcni.DelNetworkList(ctx, c.conf, runtimeConf(p)))
}

// Check asks whether the pod's namespace is still attached as Add left it.
func (c *CNI) Check(ctx context.Context, p Pod) error {
	return explain(c.libcni.CheckNetworkList(ctx, c.conf, runtimeConf(p)))
}

// GC removes every attachment of the node that belongs to none of the pods.
func (c *CNI) GC(ctx context.Context, pods []Pod) error {
	valid := []types.GCAttachment{}
	for _, p := range pods {
		valid = append(valid, types.GCAttachment{ContainerID: p.Sandbox, IfName: ifName})
	}
	return explain(c.libcni.GCNetworkList(ctx, c.conf, &libcni.GCArgs{ValidAttachments: valid}))
}

// Status asks whether the node can attach pods now.
func (c *CNI) Status(ctx context.Context) error {
	return explain(c.libcni.GetStatusNetworkList(ctx, c.conf))
}

const ifName = "eth0"

func runtimeConf(p Pod) *libcni.RuntimeConf {
	var capabilities map[string]any
	if len(p.HostPorts) > 0 {
		capabilities = map[string]any{"portMappings": p.HostPorts}
	}
	return &libcni.RuntimeConf{
		CapabilityArgs: capabilities,
		ContainerID:    p.Sandbox,
		NetNS:          p.NetNS,
		IfName:         ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.Sandbox},
			{"K8S_POD_UID", p.UID},
		},
	}
}

// explain adds what a CNI error keeps apart, its code and details.
func explain(err error) error {
	var e *types.Error
	if errors.As(err, &e) {
		return fmt.Errorf("CNI error %d: %w", e.Code, err)
	}
	return err
}

// nodeExec executes plugins inside a node's network namespace: a container runtime would run there.
type nodeExec struct {
	*invoke.RawExec
	version.PluginDecoder
	namespace string
}

func (e *nodeExec) ExecPlugin(ctx context.Context, plugin string, stdin []byte, env []string) ([]byte, error) {
	var out []byte
	err := inNetNS(e.namespace, func() (err error) {
		out, err = e.RawExec.ExecPlugin(ctx, plugin, stdin, env)
		return err
	})
	return out, err
}
