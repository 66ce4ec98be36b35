package cni

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// supported are the versions of the specification that the plugin speaks.
func supported() version.PluginInfo { return version.VersionsStartingFrom("0.3.1") }

// since says with which version of the specification a command came.
func since(command string) string {
	switch command {
	case CommandCheck:
		return "0.4.0"
	case CommandGC, CommandStatus:
		return "1.1.0"
	}
	return "0.3.1"
}

// netConf is the network configuration on standard input. The specification allows keys that we do
// not know; those that we do know must have the right type.
type netConf map[string]json.RawMessage

// parseNetConf reads the configuration for a command into req.
func parseNetConf(stdin []byte, req *Request) error {
	var conf netConf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return Errorf(ErrDecoding, "the network configuration on standard input is not a JSON object: %w", err)
	}
	if err := conf.version(req); err != nil {
		return err
	}
	if err := conf.own(req); err != nil {
		return err
	}
	switch req.Command {
	case CommandGC:
		return conf.attachments(req)
	case CommandDel:
		// Best effort, says the specification: nothing of a DEL depends on prevResult.
		if conf.previous(req) != nil {
			req.PrevResult = nil
		}
		return nil
	case CommandCheck:
		if !conf.has("prevResult") {
			return Errorf(ErrInvalidNetworkConfig, "prevResult is missing, and CHECK has nothing to compare with").
				Advise("the runtime must pass the result of ADD as prevResult")
		}
	}
	return conf.previous(req)
}

func (c netConf) version(req *Request) error {
	if err := c.read("cniVersion", "a string", &req.Config.CNIVersion); err != nil {
		return err
	}
	got := req.Config.CNIVersion
	if !slices.Contains(supported().SupportedVersions(), got) {
		return Errorf(ErrIncompatibleVersion, "cniVersion %q is not supported", got).
			Advise("set cniVersion of the network configuration to one of %s", strings.Join(supported().SupportedVersions(), ", "))
	}
	if ok, err := version.GreaterThanOrEqualTo(got, since(req.Command)); err != nil || !ok {
		return Errorf(ErrIncompatibleVersion, "cniVersion %q has no command %s", got, req.Command).
			Advise("set cniVersion of the network configuration to %s or later", since(req.Command))
	}
	return nil
}

func (c netConf) own(req *Request) error {
	config := &req.Config
	var (
		kind         string
		capabilities map[string]bool
		args         map[string]json.RawMessage
		ipam         struct {
			Type string `json:"type"`
		}
	)
	for _, f := range []struct {
		key, want string
		into      any
	}{
		{"name", "a string", &config.Name},
		{"type", "a string", &kind},
		{"socket", "a string", &config.Socket},
		{"dns", "an object of nameservers, domain, search, options", &config.DNS},
		{"capabilities", "an object of booleans", &capabilities},
		{"runtimeConfig", "an object", &config.RuntimeConfig},
		{"args", "an object", &args},
		{"ipam", "an object with a type", &ipam},
	} {
		if err := c.read(f.key, f.want, f.into); err != nil {
			return err
		}
	}
	if err := utils.ValidateNetworkName(config.Name); err != nil {
		return Errorf(ErrInvalidNetworkConfig, "name: %q is not a network name", config.Name).
			Advise("give the network a name of letters, digits, '_', '.', '-' that begins with a letter or digit")
	}
	if config.Socket == "" {
		config.Socket = DefaultSocket
	}
	if !filepath.IsAbs(config.Socket) {
		return Errorf(ErrInvalidNetworkConfig, "socket: %q is not an absolute path", config.Socket).
			Advise("set it to the CNI socket of the agent, by default %s", DefaultSocket)
	}
	// What is there already is also taken away under a configuration that was spoilt since.
	if ipam.Type != "" && req.Command != CommandDel && req.Command != CommandGC {
		return Errorf(ErrUnsupportedField, "ipam: %s is not supported", c["ipam"]).
			Advise("remove the key: the agent takes addresses from the podCIDRs of its node")
	}
	return nil
}

// previous puts prevResult, if there is one, into req in the version of this library. Before 1.0.0 a
// result need not tell its version; then it is that of the configuration.
func (c netConf) previous(req *Request) error {
	if !c.has("prevResult") {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := c.read("prevResult", "an object", &keys); err != nil {
		return err
	}
	of := req.Config.CNIVersion
	if err := (netConf(keys)).read("cniVersion", "a string", &of); err != nil {
		return err
	}
	keys["cniVersion"], _ = json.Marshal(of)
	raw, err := json.Marshal(keys)
	if err != nil {
		return Errorf(ErrDecoding, "prevResult: %w", err)
	}
	result, err := create.Create(of, raw)
	if err != nil {
		return Errorf(ErrDecoding, "prevResult is not a result of CNI %s: %w", of, err)
	}
	current, err := types100.NewResultFromResult(result)
	if err != nil {
		return Errorf(ErrDecoding, "prevResult of CNI %s cannot be converted: %w", of, err)
	}
	if req.PrevResult, err = json.Marshal(current); err != nil {
		return Errorf(ErrDecoding, "prevResult: %w", err)
	}
	return nil
}

// attachments reads the list of a GC. The key was first specified under another name, and libcni sends
// both; a list that is null is libcni's empty list, a list that is not there is not.
func (c netConf) attachments(req *Request) error {
	key := "cni.dev/valid-attachments"
	if _, ok := c[key]; !ok {
		if _, ok = c["cni.dev/attachments"]; !ok {
			return Errorf(ErrInvalidNetworkConfig, "%s is missing, and GC will not take that for an empty list", key).
				Advise("the runtime must pass the attachments that are still valid, [] if there are none")
		}
		key = "cni.dev/attachments"
	}
	return c.read(key, "a list of objects with containerID and ifname", &req.ValidAttachments)
}

// has says whether a key is there and not null.
func (c netConf) has(key string) bool {
	raw, ok := c[key]
	return ok && !bytes.Equal(raw, []byte("null"))
}

// read decodes the value of a key, if it is there; want says in words what it should be.
func (c netConf) read(key, want string, into any) error {
	if !c.has(key) {
		return nil
	}
	if err := json.Unmarshal(c[key], into); err != nil {
		return Errorf(ErrInvalidNetworkConfig, "%s: %s is not %s", key, c[key], want).
			Advise("correct it in the network configuration")
	}
	return nil
}
