package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	// ErrInterfaceTaken says that the pod has an interface of that name already and that it is not
	// the one asked for. The error that wraps it names interface and namespace.
	ErrInterfaceTaken = errors.New("interface name is taken")
	// ErrNoNetNS says that the path of a pod's network namespace leads to none (any more).
	ErrNoNetNS = errors.New("network namespace does not exist")
)

// leastIPv6MTU is the smallest link MTU, in bytes, on which the kernel runs IPv6 (RFC 8200, 5).
const leastIPv6MTU = 1280

// Veth is one interface of one pod: a veth pair whose far end lies in the pod's network namespace.
type Veth struct {
	// Host is the name of the host end, IfName that of the pod end. NetNS is the path of the pod's
	// network namespace, usable with open(2).
	Host, NetNS, IfName string
	// MAC is the address of the pod end. That of the host end does not matter: OVS never uses it.
	MAC net.HardwareAddr
	// MTU in bytes, of both ends.
	MTU int
	// Addresses of the pod end, set as /32 and /128: no other address is ever on the link.
	Addresses []netip.Addr
	// Gateways, at most one of each family, are reached directly on the link and are permanent
	// neighbours with RouterMAC, so that no ARP or ND is needed before the first packet.
	Gateways  []netip.Addr
	RouterMAC net.HardwareAddr
	// DefaultRoute asks for a default route by each gateway; false for an additional interface.
	DefaultRoute bool
	// Routes are further destinations reached by the gateway of their family.
	Routes []netip.Prefix
	// NoOffload turns transmit checksum and segmentation offload off on the pod end. The userspace
	// datapath reads packets as they are, and a checksum left to hardware would never be filled in. What
	// it sends itself by the host end is complete, and each change of that link costs ovs-vswitchd a look
	// at its whole configuration.
	NoOffload bool
	// ProcSys is where sysctls of both ends are written; empty means /proc/sys.
	ProcSys string
}

// AddVeth makes the pair and everything inside the pod. A pair that is there already is completed,
// what is right in it stays as it is; whatever a failed call made itself, it removes. Errors wrap
// ErrInterfaceTaken or ErrNoNetNS where those are the cause. there, unless nil, is called once both ends are
// there and the host end is as it has to be: what is done to that can begin beside what is left inside the pod.
func AddVeth(ctx context.Context, v Veth, there func()) error {
	if err := v.add(ctx, there); err != nil {
		return fmt.Errorf("add interface %s to %s: %w", v.IfName, v.NetNS, err)
	}
	return nil
}

func (v Veth) add(ctx context.Context, there func()) error {
	if err := v.validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := v.open()
	if err != nil {
		return err
	}
	defer p.Close()

	made, err := v.create(p)
	if err == nil {
		err = v.configureHost(p.host)
	}
	if err == nil {
		if there != nil {
			there()
		}
		err = v.configurePod(p)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && made {
		err = errors.Join(err, deleteLink(p.host, v.Host))
	}
	return err
}

func (v Veth) validate() error {
	for _, a := range v.Addresses {
		if a.Is6() && v.MTU < leastIPv6MTU {
			return fmt.Errorf("an MTU of %d bytes is below the %d that IPv6 needs for %s: raise the MTU of the underlay or give no IPv6 address",
				v.MTU, leastIPv6MTU, a)
		}
	}
	for _, r := range v.Routes {
		if !ofFamily(v.Gateways, r.Addr()).IsValid() {
			return fmt.Errorf("route to %s: the pod has no gateway of that family", r)
		}
	}
	return nil
}

// pair holds what is needed to work on both ends: a netlink socket on each side.
type pair struct {
	netns     ns.NetNS
	host, pod *netlink.Handle
}

func (v Veth) open() (*pair, error) {
	space, err := ns.GetNS(v.NetNS)
	if err != nil {
		var gone ns.NSPathNotExistErr
		var other ns.NSPathNotNSErr
		if errors.As(err, &gone) || errors.As(err, &other) {
			return nil, fmt.Errorf("%w (%v)", ErrNoNetNS, err)
		}
		return nil, err
	}
	p := &pair{netns: space}
	if p.host, err = routeSocket(); err != nil {
		p.Close()
		return nil, err
	}
	if p.pod, err = netlink.NewHandleAt(netns.NsHandle(space.Fd()), unix.NETLINK_ROUTE); err != nil {
		p.Close()
		return nil, fmt.Errorf("open a netlink socket in it: %w", err)
	}
	return p, nil
}

func (p *pair) Close() {
	for _, h := range []*netlink.Handle{p.host, p.pod} {
		if h != nil {
			h.Close()
		}
	}
	p.netns.Close()
}

// create makes the pair with one request, the pod end under its final name in its final namespace.
// made tells whether it did; false with a nil error adopts a pair that is there.
func (v Veth) create(p *pair) (made bool, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group = v.Host, v.MTU, podGroup
	link := netlink.NewVeth(attrs)
	link.PeerName, link.PeerHardwareAddr, link.PeerMTU = v.IfName, v.MAC, uint32(v.MTU)
	link.PeerNamespace = netlink.NsFd(p.netns.Fd())

	err = p.host.LinkAdd(link)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("make the veth pair %s: %w", v.Host, err)
	}
	inside, err := p.pod.LinkByName(v.IfName)
	if err != nil && !missing(err) {
		return false, fmt.Errorf("look for %s: %w", v.IfName, err)
	}
	outside, errHost := p.host.LinkByName(v.Host)
	if errHost != nil && !missing(errHost) {
		return false, fmt.Errorf("look for %s: %w", v.Host, errHost)
	}
	switch {
	case err == nil && errHost == nil && mates(inside, outside):
		return false, nil
	case err == nil:
		return false, fmt.Errorf("%s in %s is a %s that Twill did not make: give the attachment another interface name, or remove it: %w",
			v.IfName, v.NetNS, inside.Type(), ErrInterfaceTaken)
	case errHost == nil && outside.Type() == "veth":
		// A left-over whose far end is elsewhere: the name is ours, so is the pair.
		if err := deleteLink(p.host, v.Host); err != nil {
			return false, err
		}
	case errHost == nil:
		return false, fmt.Errorf("%s exists on the host and is a %s, not a veth: remove it", v.Host, outside.Type())
	}
	if err := p.host.LinkAdd(link); err != nil {
		return false, fmt.Errorf("make the veth pair %s: %w", v.Host, err)
	}
	return true, nil
}

// mates tells whether two links, seen from their own namespaces, are the ends of one veth pair.
func mates(a, b netlink.Link) bool {
	return a.Type() == "veth" && b.Type() == "veth" &&
		a.Attrs().ParentIndex == b.Attrs().Index && b.Attrs().ParentIndex == a.Attrs().Index
}

// Veths lists the links of kind veth in this namespace whose names begin with prefix.
func Veths(prefix string) ([]string, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		if name := l.Attrs().Name; l.Type() == "veth" && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, nil
}
