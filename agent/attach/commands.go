package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
)

// Add attaches one interface. What an earlier, unfinished ADD for the same interface left is removed
// first; a finished one is reported again, so that a repeated ADD is harmless.
func (m *Manager) Add(ctx context.Context, req *cni.Request, netns *os.File) (*cni.Result, error) {
	if err := m.cfg.Ready(); err != nil {
		return nil, cni.Errorf(cni.ErrTryAgain, "node %s is not ready for pods: %w", m.cfg.NodeName, err)
	}
	name := linkName(req.ContainerID, req.IfName)
	end, err := m.begin(ctx, name)
	if err != nil {
		return nil, err
	}
	defer end()

	path := fmt.Sprintf("/proc/self/fd/%d", netns.Fd())
	if p, ok := m.port(name); ok {
		r, err := readRow(p)
		if err == nil && len(m.cfg.Links.CheckVeth(m.veth(r, path))) == 0 && m.cfg.Flows.Apply(ctx, r.Owner()) == nil {
			return m.result(r), nil
		}
		if err := m.remove(ctx, name); err != nil {
			return nil, err
		}
	}
	addresses, ofport, err := m.lease()
	if err != nil {
		return nil, err
	}
	defer m.release(addresses, ofport)

	r := m.record(req, name, addresses, ofport)
	if err := m.make(ctx, r, path); err != nil {
		// The caller may have given up already; what was made has to go all the same.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, m.remove(undo, name))
	}
	return m.result(r), nil
}

func (m *Manager) record(req *cni.Request, name string, addresses []netip.Addr, ofport int) record {
	r := record{network: req.Config.Name, Attachment: flows.Attachment{
		Port: name, OFPort: uint32(ofport), Namespace: req.Pod.Namespace, Pod: req.Pod.Name, UID: req.Pod.UID,
		Sandbox: req.ContainerID, IfName: req.IfName, NetNS: req.NetNS,
		MAC: macOf(addresses), Addresses: addresses, MTU: m.cfg.MTU(),
	}}
	if r.Namespace == "" || r.Pod == "" {
		r.Namespace, r.Pod = noNamespace, req.ContainerID
	}
	return r
}

// make builds veth, port row and flows. ovs-vswitchd sets the port up while the flows are applied for
// the OpenFlow number that was asked for; should it give another, they are applied again for that.
func (m *Manager) make(ctx context.Context, r record, netns string) error {
	if err := m.cfg.Links.AddVeth(ctx, m.veth(r, netns)); err != nil {
		switch {
		case errors.Is(err, host.ErrInterfaceTaken):
			return cni.Errorf(cni.ErrInterfaceExists, "%w", err)
		case errors.Is(err, host.ErrNoNetNS):
			return cni.Errorf(cni.ErrInvalidNetNS, "%w", err)
		}
		return err
	}
	if err := m.cfg.Ports.StartPort(ctx, m.cfg.Bridge, r.row()); err != nil {
		return cni.Errorf(cni.ErrPort, "%w", err)
	}
	applied := make(chan error, 1)
	go func() { applied <- m.cfg.Flows.Apply(ctx, r.Owner()) }()
	p, err := m.cfg.Ports.WaitPort(ctx, m.cfg.Bridge, r.Port)
	if flowsErr := <-applied; err == nil && flowsErr != nil {
		return cni.Errorf(cni.ErrTryAgain, "the flows of pod %s/%s are not in place: %w", r.Namespace, r.Pod, flowsErr)
	}
	if err != nil {
		return cni.Errorf(cni.ErrPort, "%w", err)
	}
	if p.OFPort != int(r.OFPort) {
		if err := m.cfg.Flows.Apply(ctx, r.Owner()); err != nil {
			return cni.Errorf(cni.ErrTryAgain, "the flows of pod %s/%s are not in place: %w", r.Namespace, r.Pod, err)
		}
	}
	return nil
}

// veth is how an attachment's interface has to be.
func (m *Manager) veth(r record, netns string) host.Veth {
	return host.Veth{
		Host: r.Port, NetNS: netns, IfName: r.IfName, MAC: r.MAC, MTU: r.MTU, Addresses: r.Addresses,
		Gateways: m.gateways(r.Addresses), RouterMAC: m.cfg.RouterMAC,
		DefaultRoute: r.IfName == defaultInterface, NoOffload: m.cfg.NoOffload,
	}
}

// defaultInterface is the interface that carries the default route (every CRI runtime names it so).
const defaultInterface = "eth0"

func (m *Manager) result(r record) *cni.Result {
	out := &cni.Result{HostInterface: r.Port, MAC: r.MAC.String(), MTU: r.MTU, Addresses: r.Addresses, Gateways: m.gateways(r.Addresses)}
	for _, g := range out.Gateways {
		out.Routes = append(out.Routes, cni.Route{Destination: netip.PrefixFrom(g, g.BitLen())})
		if r.IfName == defaultInterface {
			all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if g.Is6() {
				all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			out.Routes = append(out.Routes, cni.Route{Destination: all, Gateway: g})
		}
	}
	return out
}

// Del detaches one interface. What is not there is no error; but while Open vSwitch cannot be reached
// nothing is known to be gone, and the runtime is told to try again.
func (m *Manager) Del(ctx context.Context, req *cni.Request) error {
	name := linkName(req.ContainerID, req.IfName)
	end, err := m.begin(ctx, name)
	if err != nil {
		return err
	}
	defer end()
	return m.remove(ctx, name)
}

// remove takes an attachment away: flows, port row, veth, then the addresses rest. The caller holds it.
// Flows that cannot be removed because ovs-vswitchd is away do not hold the rest up: without a row they
// are no longer wanted, and the loop deletes them as soon as it can.
func (m *Manager) remove(ctx context.Context, name string) error {
	if err := m.cfg.Ports.Alive(); err != nil {
		return cni.Errorf(cni.ErrTryAgain, "detaching %s: %w", name, err)
	}
	p, known := m.port(name)
	if known {
		m.setLeaving(name, true)
		defer m.setLeaving(name, false)
		if r, err := readRow(p); err == nil {
			if err := m.cfg.Flows.Apply(ctx, r.Owner()); err != nil {
				m.cfg.Log.WithError(err).WithField("port", name).Warn("flows of a leaving pod are removed later")
			}
		}
		if err := m.cfg.Ports.DeletePorts(ctx, m.cfg.Bridge, name); err != nil {
			return cni.Errorf(cni.ErrTryAgain, "detaching %s: %w", name, err)
		}
	}
	if err := m.cfg.Links.DeleteVeth(name); err != nil {
		return err
	}
	if known {
		m.rest(addressesOf(p))
	}
	return nil
}

func (m *Manager) setLeaving(name string, leaving bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if leaving {
		m.leaving[name] = true
	} else {
		delete(m.leaving, name)
	}
}

// Check compares an attachment with what ADD reported.
func (m *Manager) Check(_ context.Context, req *cni.Request, netns *os.File) error {
	name := linkName(req.ContainerID, req.IfName)
	who := fmt.Sprintf("interface %s of %s", req.IfName, req.ContainerID)
	if err := m.cfg.Ports.Alive(); err != nil {
		return cni.Errorf(cni.ErrTryAgain, "checking %s: %w", who, err)
	}
	p, ok := m.port(name)
	if !ok {
		return cni.Errorf(cni.ErrUnknownContainer, "%s has no port on bridge %s: delete the pod, it has to be attached anew", who, m.cfg.Bridge)
	}
	r, err := readRow(p)
	if err != nil {
		return cni.Errorf(cni.ErrDiffers, "%w", err)
	}
	if err := m.result(r).Differs(req); err != nil {
		return err
	}
	if wrong := m.cfg.Links.CheckVeth(m.veth(r, fmt.Sprintf("/proc/self/fd/%d", netns.Fd()))); len(wrong) > 0 {
		return cni.Errorf(cni.ErrDiffers, "%s: %s", who, strings.Join(wrong, "; "))
	}
	return nil
}

// GC removes every attachment of the request's network that the runtime does not list, and host ends
// that belong to no port row. What a command is under way for is left alone.
func (m *Manager) GC(ctx context.Context, req *cni.Request) error {
	valid := map[string]bool{}
	for _, a := range req.ValidAttachments {
		valid[linkName(a.ContainerID, a.IfName)] = true
	}
	var stale []string
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if isOurs(p) && p.ExternalIDs[keyNetwork] == req.Config.Name && !valid[p.Name] {
			stale = append(stale, p.Name)
		}
	}
	return m.sweep(ctx, stale)
}

// sweep removes attachments, and host ends without a row, unless a command is under way for them.
func (m *Manager) sweep(ctx context.Context, stale []string) error {
	links, err := m.cfg.Links.Veths(LinkPrefix)
	if err != nil {
		return err
	}
	for _, l := range links {
		if _, known := m.port(l); !known && IsLinkName(l) {
			stale = append(stale, l)
		}
	}
	slices.Sort(stale)
	var errs []error
	for _, name := range slices.Compact(stale) {
		end, free := m.tryBegin(name)
		if !free {
			continue
		}
		errs = append(errs, m.remove(ctx, name))
		end()
	}
	return errors.Join(errs...)
}

// Status says whether ADD would work.
func (m *Manager) Status(context.Context, *cni.Request) error {
	if err := m.cfg.Ready(); err != nil {
		return cni.Errorf(cni.ErrNotAvailable, "node %s is not ready for pods: %w", m.cfg.NodeName, err)
	}
	for _, r := range m.Usage().Ranges {
		if r.Free+r.Cooling == 0 {
			return cni.Errorf(cni.ErrNotAvailable, "podCIDR %s of node %s has no free address: %d in use", r.CIDR, m.cfg.NodeName, r.Used)
		}
	}
	return nil
}

// Adopt looks at what is there when the agent starts: ports whose device is gone (after a reboot), and
// host ends without a row, are removed; everything else is taken over as it is.
func (m *Manager) Adopt(ctx context.Context) (adopted, removed int, err error) {
	links, err := m.cfg.Links.Veths(LinkPrefix)
	if err != nil {
		return 0, 0, err
	}
	var stale []string
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		switch {
		case !isOurs(p):
		case !slices.Contains(links, p.Name):
			stale = append(stale, p.Name)
		default:
			adopted++
		}
	}
	return adopted, len(stale), m.sweep(ctx, stale)
}
