package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/utils"
)

// PluginType is the plugin's name in a network configuration, and of its file in the CNI bin directory.
const PluginType = "twill-cni"

// ConflistConfig says what the network configuration of a node contains.
type ConflistConfig struct {
	// Name of the network; "twill" if empty.
	Name string
	// CNIVersion is the newest version of the specification that the runtime may choose; "1.1.0" if
	// empty. With 1.1.0 the file says cniVersion 1.0.0 and lists 1.1.0 in cniVersions: libcni since
	// 1.2 takes the newest one that it knows of both keys, and gains GC and STATUS; older ones
	// (containerd 1.6 and 1.7 have libcni 1.1) do not know the list and take 1.0.0, where a cniVersion
	// of 1.1.0 would fail each ADD. Choose 1.0.0 where the runtime is new but portmap or bandwidth are
	// older than release 1.5 of the reference plugins: a chain runs in one version.
	CNIVersion string
	// Socket is the agent's; DefaultSocket if empty.
	Socket string
	// Portmap adds the reference plugin for hostPort, Bandwidth the one for the bandwidth annotations.
	Portmap, Bandwidth bool
	// Chain are further plugin configurations, appended as they are.
	Chain []json.RawMessage
}

// Conflist makes the file that a runtime reads. Equal configurations give equal bytes.
func Conflist(c ConflistConfig) ([]byte, error) {
	list := struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions,omitempty"`
		Name        string   `json:"name"`
		Plugins     []any    `json:"plugins"`
	}{CNIVersion: c.CNIVersion, Name: c.Name}

	switch c.CNIVersion {
	case "", "1.1.0":
		list.CNIVersion, list.CNIVersions = "1.0.0", []string{"1.0.0", "1.1.0"}
	case "1.0.0", "0.4.0", "0.3.1":
	default:
		return nil, fmt.Errorf("network configuration: CNI version %q is not supported: choose 0.3.1, 0.4.0, 1.0.0 or 1.1.0", c.CNIVersion)
	}
	if list.Name == "" {
		list.Name = "twill"
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("network configuration: name %q: %w", list.Name, err)
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) {
		return nil, fmt.Errorf("network configuration: socket %q is not an absolute path", c.Socket)
	}

	type capable struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	list.Plugins = append(list.Plugins, struct {
		Type   string `json:"type"`
		Socket string `json:"socket"`
	}{PluginType, c.Socket})
	if c.Portmap {
		list.Plugins = append(list.Plugins, capable{"portmap", map[string]bool{"portMappings": true}})
	}
	if c.Bandwidth {
		list.Plugins = append(list.Plugins, capable{"bandwidth", map[string]bool{"bandwidth": true}})
	}
	for i, raw := range c.Chain {
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &plugin); err != nil || plugin.Type == "" {
			return nil, fmt.Errorf("network configuration: chained plugin %d, %s, is not an object with a type", i, raw)
		}
		list.Plugins = append(list.Plugins, raw)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetIndent("", "  ")
	if err := e.Encode(list); err != nil {
		return nil, fmt.Errorf("network configuration: %w", err)
	}
	return out.Bytes(), nil
}

// ours says whether a network configuration has our plugin in it.
func ours(conflist []byte) bool {
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(conflist, &list) != nil {
		return false
	}
	for _, p := range list.Plugins {
		if p.Type == PluginType {
			return true
		}
	}
	return false
}
