package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
)

// WireVersion is the version of the messages between plugin and agent. It changes when an older peer
// would misunderstand a message, not when a field is added.
const WireVersion = 1

// maxMessage bounds a line on the wire, in bytes. The longest one is a GC request: about 100 bytes
// for each attachment of the node.
const maxMessage = 4 << 20

// DefaultSocket is where the agent listens when the network configuration names no socket.
const DefaultSocket = "/run/twill/cni.sock"

// The CNI commands that the agent answers. VERSION is answered by the plugin alone.
const (
	CommandAdd    = "ADD"
	CommandDel    = "DEL"
	CommandCheck  = "CHECK"
	CommandGC     = "GC"
	CommandStatus = "STATUS"
)

// Request is what the plugin asks the agent: one CNI command, its environment and configuration
// already validated.
type Request struct {
	Version int    `json:"version"`
	Command string `json:"command"`

	// ContainerID, NetNS and IfName are CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME; empty for GC and
	// STATUS. NetNS is a path as the runtime sees it; it may be empty or gone when Command is DEL.
	ContainerID string `json:"containerID,omitempty"`
	NetNS       string `json:"netns,omitempty"`
	IfName      string `json:"ifname,omitempty"`
	// Args is CNI_ARGS as it was given.
	Args string `json:"args,omitempty"`
	// Pod is what Args say about the Kubernetes pod. Zero under other runtimes.
	Pod    PodRef `json:"pod,omitzero"`
	Config Config `json:"config"`

	// PrevResult is the prevResult of the configuration as a result of CNI 1.1.0, whatever version it
	// came in. Always there for CHECK, for ADD only in a chain after another plugin.
	PrevResult json.RawMessage `json:"prevResult,omitempty"`
	// ValidAttachments are, for GC, all attachments of the network that the runtime still knows.
	ValidAttachments []Attachment `json:"validAttachments,omitempty"`
}

// PodRef names the Kubernetes pod behind a sandbox, by the CNI_ARGS that every CRI runtime passes.
type PodRef struct {
	Namespace string `json:"namespace,omitempty"` // K8S_POD_NAMESPACE
	Name      string `json:"name,omitempty"`      // K8S_POD_NAME
	UID       string `json:"uid,omitempty"`       // K8S_POD_UID
	Sandbox   string `json:"sandbox,omitempty"`   // K8S_POD_INFRA_CONTAINER_ID
}

// Attachment identifies one interface of one container, as the CNI specification does.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Response is what the agent answers: Error, or, for ADD, a Result, or neither.
type Response struct {
	Version int     `json:"version"`
	Result  *Result `json:"result,omitempty"`
	Error   *Error  `json:"error,omitempty"`
}

// Result is what ADD made.
type Result struct {
	// HostInterface is the name of the veth end on the host, HostMAC its address.
	HostInterface string `json:"hostInterface"`
	HostMAC       string `json:"hostMAC,omitempty"`
	// MAC and MTU (bytes) are those of the interface in the pod; its name and network namespace are
	// those of the Request.
	MAC string `json:"mac"`
	MTU int    `json:"mtu,omitempty"`
	// Addresses of the pod, reported with the full length of their family (/32, /128).
	Addresses []netip.Addr `json:"addresses"`
	// Gateways are the next hops, at most one of each family.
	Gateways []netip.Addr `json:"gateways,omitempty"`
	Routes   []Route      `json:"routes,omitempty"`
}

// Route is a route in the pod. The zero Gateway is a route on the link.
type Route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"`
}

// Config is what the agent is told of the network configuration of the plugin.
type Config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Socket is the absolute path of the agent's socket; DefaultSocket when the configuration is silent.
	Socket string `json:"socket"`
	// DNS is put into results as it is.
	DNS types.DNS `json:"dns,omitzero"`
	// RuntimeConfig holds the capability arguments of the runtime by capability, each as it was given.
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig,omitempty"`
}

// checkVersion says which of two programs to upgrade when peer, "plugin" or "agent", spoke version got.
func checkVersion(peer string, got int) error {
	if got == WireVersion {
		return nil
	}
	remedy := map[string]string{
		"plugin": "restart the agent with plugin installation enabled, or copy the twill-cni of the agent's release into the CNI bin directory",
		"agent":  "upgrade the agent of this node to the release of this twill-cni",
	}
	old := peer
	if got > WireVersion {
		old = map[string]string{"plugin": "agent", "agent": "plugin"}[peer]
	}
	return Errorf(ErrWireVersion, "the %s speaks version %d of the wire between plugin and agent, but version %d is wanted: upgrade the %s",
		peer, got, WireVersion, old).Advise("%s", remedy[old])
}

// decode reads one line of the wire into v, after a look at its version: a message of another version
// need not fit v at all.
func decode(line []byte, peer string, v any) error {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return Errorf(ErrDecoding, "the %s sent a line that is not a message: %w", peer, err)
	}
	if err := checkVersion(peer, head.Version); err != nil {
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return Errorf(ErrDecoding, "the %s sent a malformed message: %w", peer, err)
	}
	return nil
}

// encode makes a line of v.
func encode(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a message of the CNI wire: %w", err)
	}
	return append(line, '\n'), nil
}
