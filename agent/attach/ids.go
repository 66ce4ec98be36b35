package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Keys of Interface.external_ids.
const (
	keyPrefix    = "twill-"
	keyPod       = "twill-pod"       // NAMESPACE/NAME
	keyUID       = "twill-uid"       // of the pod
	keySandbox   = "twill-sandbox"   // CNI_CONTAINERID
	keyIfName    = "twill-ifname"    // CNI_IFNAME
	keyNetwork   = "twill-network"   // name of the network configuration
	keyAddresses = "twill-addresses" // separated by spaces
	keyGateways  = "twill-gateways"  // one for each address, separated by spaces
	keyMAC       = "twill-mac"       // of the interface in the pod
	keyNetNS     = "twill-netns"     // CNI_NETNS
	keyMTU       = "twill-mtu"       // bytes
)

// noNamespace stands for the namespace of a sandbox that belongs to no Kubernetes pod; its container ID
// stands for the name. It is no valid name of a namespace, so that nothing can collide.
const noNamespace = "_"

// LinkPrefix begins the name of every host end of ours.
const LinkPrefix = "tw"

// linkName is the name of the port and of the host end of the veth pair: at most 15 characters, the same
// for every attempt at the same attachment.
func linkName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + " " + ifName))
	return LinkPrefix + hex.EncodeToString(sum[:])[:13]
}

// record is an attachment with what only this package needs to know of it.
type record struct {
	flows.Attachment
	network string
	// gateways are the pod's routers, one for each address. They stay what they were when the podCIDR
	// changes under a running pod.
	gateways []netip.Addr
}

// row is the port row of an attachment.
func (r record) row() ovs.Port {
	return ovs.Port{
		Name: r.Port, OFPortRequest: int(r.OFPort),
		ExternalIDs: map[string]string{
			keyPod: r.Namespace + "/" + r.Pod, keyUID: r.UID, keySandbox: r.Sandbox, keyIfName: r.IfName,
			keyNetwork: r.network, keyAddresses: join(r.Addresses), keyGateways: join(r.gateways),
			keyMAC: r.MAC.String(), keyNetNS: r.NetNS, keyMTU: strconv.Itoa(r.MTU),
		},
	}
}

func join(addresses []netip.Addr) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}

// isOurs is true for a port row that an ADD made, whatever state its ids are in.
func isOurs(p ovs.Port) bool {
	for k := range p.ExternalIDs {
		if strings.HasPrefix(k, keyPrefix) {
			return true
		}
	}
	return false
}

// readRow reads an attachment off its port row. The error names the row, the key and the value.
func readRow(p ovs.Port) (record, error) {
	bad := func(key, why string) (record, error) {
		return record{}, fmt.Errorf("port %s: external_ids:%s=%q %s; delete the pod, or the port with ovs-vsctl del-port", p.Name, key, p.ExternalIDs[key], why)
	}
	ids := p.ExternalIDs
	r := record{network: ids[keyNetwork]}
	r.Port, r.UID, r.Sandbox, r.IfName, r.NetNS = p.Name, ids[keyUID], ids[keySandbox], ids[keyIfName], ids[keyNetNS]
	var ok bool
	if r.Namespace, r.Pod, ok = strings.Cut(ids[keyPod], "/"); !ok || r.Namespace == "" || r.Pod == "" || strings.Contains(r.Pod, "/") {
		return bad(keyPod, "is not NAMESPACE/NAME")
	}
	if r.Sandbox == "" {
		return bad(keySandbox, "is empty")
	}
	if r.IfName == "" {
		return bad(keyIfName, "is empty")
	}
	if r.Addresses, ok = parseAddresses(ids[keyAddresses]); !ok {
		return bad(keyAddresses, "is no list of addresses")
	}
	if r.gateways, ok = parseAddresses(ids[keyGateways]); !ok || !slices.EqualFunc(r.Addresses, r.gateways, sameFamily) {
		return bad(keyGateways, "is no list of one gateway for each address")
	}
	mac, err := net.ParseMAC(ids[keyMAC])
	if err != nil || len(mac) != 6 {
		return bad(keyMAC, "is no Ethernet address")
	}
	r.MAC = mac
	if r.MTU, err = strconv.Atoi(ids[keyMTU]); err != nil || r.MTU <= 0 {
		return bad(keyMTU, "is no number of bytes")
	}
	switch {
	case p.OFPort > 0:
		r.OFPort = uint32(p.OFPort)
	case p.OFPort == 0 && p.OFPortRequest > 0:
		r.OFPort = uint32(p.OFPortRequest)
	case p.OFPort < 0:
		return record{}, fmt.Errorf("port %s of pod %s/%s: ovs-vswitchd could not make it: %s", p.Name, r.Namespace, r.Pod, p.Error)
	default:
		return record{}, fmt.Errorf("port %s of pod %s/%s has no OpenFlow number yet", p.Name, r.Namespace, r.Pod)
	}
	return r, nil
}

// parseAddresses reads one or more plain addresses separated by spaces.
func parseAddresses(list string) (out []netip.Addr, ok bool) {
	for word := range strings.FieldsSeq(list) {
		a, err := netip.ParseAddr(word)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return nil, false
		}
		out = append(out, a)
	}
	return out, len(out) > 0
}

func sameFamily(a, b netip.Addr) bool { return a.Is4() == b.Is4() }

// addressesOf are the addresses that a port row leases, as far as they can be read.
func addressesOf(p ovs.Port) []netip.Addr {
	var out []netip.Addr
	for word := range strings.FieldsSeq(p.ExternalIDs[keyAddresses]) {
		if a, err := netip.ParseAddr(word); err == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

// IsLinkName is true for a name that linkName could have made.
func IsLinkName(s string) bool {
	digits, ok := strings.CutPrefix(s, LinkPrefix)
	if !ok || len(digits) != 13 {
		return false
	}
	return strings.Trim(digits, "0123456789abcdef") == ""
}
