package flows

import (
	"net"
	"net/netip"
	"strings"
	"time"
)

// World is everything Compile looks at: what Kubernetes says about nodes and what OVSDB says about
// the ports of this one. It is plain data; two equal Worlds compile to equal Sets, whatever the
// order in which their parts became known.
type World struct {
	// Node is the node whose bridge is being compiled.
	Node Node
	// Tunnel says how packets travel to other nodes.
	Tunnel Tunnel
	// ClusterCIDRs are the ranges all podCIDRs are taken from, at most one of each family.
	// Empty when the operator did not tell: then host routes grow with the nodes.
	ClusterCIDRs []netip.Prefix
	// MTU is the largest IP packet, in bytes, that a pod may send through the tunnel.
	MTU int
	// HostAnswersND is true where the datapath cannot write the options of Neighbor Discovery, which is
	// the kernel's case: there a pod's solicitation goes to the host, which answers for its own addresses.
	HostAnswersND bool
	// Peers are the other nodes by name, as Admit left them: no two overlap.
	Peers map[string]Node
	// Services are nil where another proxy cares for them.
	Services *Services
	// Lingering are addresses that are endpoints of no Service any more while connections through one still lead
	// there: their answers have to be translated as before.
	Lingering map[netip.Addr]bool
	// Round is that of session affinity: who has no endpoint in one round may get another in the next.
	Round uint32 `json:",omitempty"`
	// Own are addresses of this host itself at which Services are served, see Services.Own. Sorted.
	Own []netip.Addr `json:",omitempty"`
	// Pods are the attachments of this node by owner. One owner has several entries while an old
	// sandbox of the same pod still waits for its DEL.
	Pods map[Owner][]Attachment
	// Policy is what policies come to on this node; nil when none selects a pod of it.
	Policy *Policy
}

// Node is what the pod network needs to know of a Kubernetes Node.
type Node struct {
	Name string
	// UID and Created identify one incarnation of the Node object; the elder of two Nodes that claim
	// the same range or address keeps it.
	UID     string
	Created time.Time
	// PodCIDRs are spec.podCIDRs, at most one of each family.
	PodCIDRs []netip.Prefix
	// Zone is the label topology.kubernetes.io/zone, empty for none.
	Zone string
	// Addresses are the InternalIPs of status.addresses, of both families, in the order of the object.
	Addresses []netip.Addr
	// Labels are metadata.labels as "key=value,key=value", sorted. No flow depends on them directly.
	Labels string
}

// TunnelType is the encapsulation between nodes.
type TunnelType string

const (
	Geneve TunnelType = "geneve" // RFC 8926
	VXLAN  TunnelType = "vxlan"  // RFC 7348
)

// Tunnel describes the one flow-based tunnel port of the bridge.
type Tunnel struct {
	Type TunnelType
	// Port is the UDP destination port.
	Port uint16
	// VNI is the 24-bit virtual network identifier that all nodes of a cluster share.
	VNI uint32
	// Local is this node's end. Its family is the family of the underlay: peers are reached at their
	// first address of that family.
	Local netip.Addr
}

// Attachment is one interface of one pod on this node, exactly as its port row in OVSDB tells it.
type Attachment struct {
	// Port is the name of the OVS port and of the host end of the veth pair.
	Port string
	// OFPort is the OpenFlow port number: the one OVS assigned or, while it has not yet done so, the
	// one that was requested. Never 0 or negative here: such rows are no part of a World.
	OFPort uint32

	Namespace, Pod, UID string
	// Sandbox is the CNI container ID, IfName the interface inside the pod, NetNS the path of its
	// network namespace as the runtime gave it.
	Sandbox, IfName, NetNS string

	MAC       net.HardwareAddr
	Addresses []netip.Addr
	// MTU is the MTU in bytes that the pod's interface was given when it was made.
	MTU int
}

// Owner names the object on whose behalf a flow exists: kind/namespace/name[/part] for namespaced
// kinds, kind/name[/part] for others, or the single word "pipeline" for the flows that every bridge has.
type Owner string

// Kind is the kind of the object, in small letters.
func (o Owner) Kind() string {
	kind, _, _ := strings.Cut(string(o), "/")
	return kind
}

// Pipeline owns what does not depend on any object.
const Pipeline Owner = "pipeline"

// PodOwner is the owner of the flows of a pod's interface. The default interface, eth0, carries the
// pod's plain name; every other one adds its own.
func PodOwner(namespace, pod, ifName string) Owner {
	o := Owner("pod/" + namespace + "/" + pod)
	if ifName != "eth0" {
		o += Owner("/" + ifName)
	}
	return o
}

// NodeOwner is the owner of the flows toward a peer.
func NodeOwner(name string) Owner { return Owner("node/" + name) }

// Owner is the owner of the flows of this attachment.
func (a Attachment) Owner() Owner { return PodOwner(a.Namespace, a.Pod, a.IfName) }
