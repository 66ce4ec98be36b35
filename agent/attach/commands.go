package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

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
	if m.cfg.Known != nil && req.Pod.Namespace != "" {
		if err := m.cfg.Known(ctx, req.Pod.Namespace, req.Pod.Name, req.Pod.UID); err != nil {
			return nil, cni.Errorf(cni.ErrTryAgain, "pod %s/%s: %w", req.Pod.Namespace, req.Pod.Name, err)
		}
	}
	name := linkName(req.ContainerID, req.IfName)
	end, err := m.begin(ctx, name)
	if err != nil {
		return nil, err
	}
	defer end()

	path := fmt.Sprintf("/proc/self/fd/%d", netns.Fd())
	r, made := m.intact(name, path)
	if made {
		err = m.connect(ctx, r)
	} else {
		if _, known := m.find(name); known {
			if err := m.remove(ctx, name); err != nil {
				return nil, err
			}
		}
		if r, err = m.lease(m.record(req, name)); err != nil {
			return nil, err
		}
		err = m.make(ctx, r, path)
	}
	if err != nil {
		// The caller may have given up already; what was made has to go all the same.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return nil, errors.Join(err, m.remove(undo, name))
	}
	return result(r), nil
}

// undoTimeout bounds the cleaning up after an ADD that failed.
const undoTimeout = 10 * time.Second

// intact finds a finished attachment that a repeated ADD can report again: the interface is as it has to
// be, and its addresses are of the podCIDRs of today.
func (m *Manager) intact(name, netns string) (record, bool) {
	l, known := m.find(name)
	p, there := m.port(name)
	if !known || !there || l.leaving {
		return record{}, false
	}
	r, err := readRow(p)
	if err != nil || !slices.EqualFunc(m.cfg.PodCIDRs(), r.Addresses, assignable) || len(m.cfg.Links.CheckVeth(m.veth(r, netns))) > 0 {
		return record{}, false
	}
	return r, true
}

func (m *Manager) record(req *cni.Request, name string) record {
	r := record{network: req.Config.Name, Attachment: flows.Attachment{
		Port: name, Namespace: req.Pod.Namespace, Pod: req.Pod.Name, UID: req.Pod.UID,
		Sandbox: req.ContainerID, IfName: req.IfName, NetNS: req.NetNS, MTU: m.cfg.MTU(),
	}}
	if r.Namespace == "" || r.Pod == "" {
		r.Namespace, r.Pod = noNamespace, req.ContainerID
	}
	return r
}

// make builds the veth pair, and connects its host end to the bridge while the pod end is still being configured: what
// the one waits for (ovs-vswitchd) is not what the other waits for (the kernel).
func (m *Manager) make(ctx context.Context, r record, netns string) error {
	connecting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var both sync.WaitGroup
	var connected error
	made := m.cfg.Links.AddVeth(ctx, m.veth(r, netns), func() {
		m.start(r.Port)
		both.Go(func() {
			if connected = m.portError(m.cfg.Ports.StartPort(connecting, m.cfg.Bridge, r.row())); connected == nil {
				connected = m.connect(connecting, r)
			}
		})
	})
	if made != nil {
		giveUp()
	}
	both.Wait()
	switch {
	case made == nil:
		return connected
	case errors.Is(made, host.ErrInterfaceTaken):
		return cni.Errorf(cni.ErrInterfaceExists, "%w", made)
	case errors.Is(made, host.ErrNoNetNS):
		return cni.Errorf(cni.ErrInvalidNetNS, "%w", made)
	}
	return made
}

// connect waits for ovs-vswitchd to set the port up while the flows are applied for the OpenFlow number
// that was asked for; should it give another, they are applied again for that.
func (m *Manager) connect(ctx context.Context, r record) error {
	applied := make(chan error, 1)
	go func() { applied <- m.apply(ctx, r) }()
	p, err := m.cfg.Ports.WaitPort(ctx, m.cfg.Bridge, r.Port)
	flowsErr := <-applied
	switch {
	case err != nil:
		return m.portError(err)
	case flowsErr == nil && p.OFPort != int(r.OFPort):
		return m.apply(ctx, r)
	}
	return flowsErr
}

func (m *Manager) apply(ctx context.Context, r record) error {
	if err := m.cfg.Flows.Apply(ctx, r.Owner()); err != nil {
		return cni.Errorf(cni.ErrTryAgain, "the flows of pod %s/%s are not in place: %w", r.Namespace, r.Pod, err)
	}
	return nil
}

// portError gives an error of OVSDB its code: it is transient when the caller gave up, or the connection
// is lost.
func (m *Manager) portError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), m.cfg.Ports.Alive() != nil:
		return cni.Errorf(cni.ErrTryAgain, "%w", err)
	}
	return cni.Errorf(cni.ErrPort, "%w", err)
}

// veth is how an attachment's interface has to be. Only the default interface has routes: all of a pod's
// interfaces would have the same gateway, and a route to it can be on one of them.
func (m *Manager) veth(r record, netns string) host.Veth {
	v := host.Veth{
		Host: r.Port, NetNS: netns, IfName: r.IfName, MAC: r.MAC, MTU: r.MTU, Addresses: r.Addresses,
		RouterMAC: m.cfg.RouterMAC, NoOffload: m.cfg.NoOffload,
	}
	if r.IfName == defaultInterface {
		v.Gateways, v.DefaultRoute = r.gateways, true
	}
	return v
}

// defaultInterface is the interface that carries the default route (every CRI runtime names it so).
const defaultInterface = "eth0"

// result is the answer of ADD for an attachment, see veth.
func result(r record) *cni.Result {
	out := &cni.Result{HostInterface: r.Port, MAC: r.MAC.String(), MTU: r.MTU, Addresses: r.Addresses, Gateways: r.gateways}
	if r.IfName != defaultInterface {
		return out
	}
	for _, g := range r.gateways {
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if g.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		out.Routes = append(out.Routes, cni.Route{Destination: netip.PrefixFrom(g, g.BitLen())}, cni.Route{Destination: everything, Gateway: g})
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
// Flows that cannot be removed because ovs-vswitchd is away do not hold the rest up: they are no longer
// wanted, and the loop deletes them as soon as it can.
func (m *Manager) remove(ctx context.Context, name string) error {
	if err := m.cfg.Ports.Alive(); err != nil {
		return cni.Errorf(cni.ErrTryAgain, "detaching %s: %w", name, err)
	}
	// A row that was started is deleted also when it is not to be seen: its transaction may be under way.
	if l, known := m.leave(name); known && l.started {
		if r, err := readRow(l.port); err == nil {
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
	m.forget(name)
	return nil
}

// Check compares an attachment with what ADD reported.
func (m *Manager) Check(_ context.Context, req *cni.Request, netns *os.File) error {
	name := linkName(req.ContainerID, req.IfName)
	who := fmt.Sprintf("interface %s of %s", req.IfName, req.ContainerID)
	if err := m.cfg.Ports.Alive(); err != nil {
		return cni.Errorf(cni.ErrTryAgain, "checking %s: %w", who, err)
	}
	p, ok := m.port(name)
	if _, known := m.find(name); known && !ok {
		return cni.Errorf(cni.ErrTryAgain, "checking %s: somebody deleted its port %s; it is being restored", who, name)
	}
	if !ok {
		return cni.Errorf(cni.ErrUnknownContainer, "%s has no port on bridge %s: delete the pod, it has to be attached anew", who, m.cfg.Bridge)
	}
	r, err := readRow(p)
	if err != nil {
		return cni.Errorf(cni.ErrDiffers, "%w", err)
	}
	if err := result(r).Differs(req); err != nil {
		return err
	}
	if wrong := m.cfg.Links.CheckVeth(m.veth(r, fmt.Sprintf("/proc/self/fd/%d", netns.Fd()))); len(wrong) > 0 {
		return cni.Errorf(cni.ErrDiffers, "%s: %s", who, strings.Join(wrong, "; "))
	}
	return nil
}

// Status says whether ADD would work. Addresses that rest are no reason against it: they are free soon.
func (m *Manager) Status(context.Context, *cni.Request) error {
	if err := m.cfg.Ready(); err != nil {
		return cni.Errorf(cni.ErrNotAvailable, "node %s is not ready for pods: %w", m.cfg.NodeName, err)
	}
	ranges := m.Usage().Ranges
	if len(ranges) == 0 {
		return m.noPodCIDR(cni.ErrNotAvailable)
	}
	for _, r := range ranges {
		if r.Free+r.Cooling == 0 {
			return m.exhausted(cni.ErrNotAvailable, r)
		}
	}
	return nil
}
