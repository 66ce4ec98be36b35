package attach

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/ovs"
)

// GC removes every attachment of the request's network that the runtime does not list, and host ends
// that belong to none. What a command is under way for is left alone.
func (m *Manager) GC(ctx context.Context, req *cni.Request) error {
	valid := map[string]bool{}
	for _, a := range req.ValidAttachments {
		valid[linkName(a.ContainerID, a.IfName)] = true
	}
	_, err := m.sweep(ctx, func(name string, p ovs.Port, known bool) bool {
		return !valid[name] && (!known || p.ExternalIDs[keyNetwork] == req.Config.Name)
	})
	return err
}

// Adopt looks at what is there when the agent starts, before any command: ports whose device is gone
// (after a reboot), and host ends without a row, are removed; everything else is taken over as it is, but for
// host ends that an older version has left open toward the host.
func (m *Manager) Adopt(ctx context.Context) (adopted, removed int, err error) {
	links, err := m.cfg.Links.Veths(LinkPrefix)
	if err != nil {
		return 0, 0, err
	}
	m.mu.Lock()
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if isOurs(p) {
			m.held[p.Name] = lease{port: p, started: true}
		}
	}
	m.mu.Unlock()
	removed, err = m.sweep(ctx, func(name string, _ ovs.Port, known bool) bool {
		return !known || !slices.Contains(links, name)
	})
	m.mu.Lock()
	held := slices.Sorted(maps.Keys(m.held))
	m.mu.Unlock()
	return len(held), removed, errors.Join(err, m.cfg.Links.Seal(held...))
}

// sweeping is one sweep. It spares what any command is, or was, under way for since it began: the list that
// it goes by is older than that.
type sweeping struct {
	stale  func(name string, p ovs.Port, known bool) bool
	spared map[string]bool // guarded by Manager.mu
}

// sweep removes what stale picks among all attachments, and among the host ends of ours that belong to
// none (known is false).
func (m *Manager) sweep(ctx context.Context, stale func(name string, p ovs.Port, known bool) bool) (removed int, err error) {
	s := &sweeping{stale: stale, spared: map[string]bool{}}
	m.mu.Lock()
	for name := range m.busy {
		s.spared[name] = true
	}
	m.sweeps[s] = true
	names := slices.Collect(maps.Keys(m.held))
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.sweeps, s)
		m.mu.Unlock()
	}()
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if isOurs(p) {
			names = append(names, p.Name)
		}
	}
	links, err := m.cfg.Links.Veths(LinkPrefix)
	if err != nil {
		return 0, err
	}
	names = append(names, slices.DeleteFunc(links, func(l string) bool { return !IsLinkName(l) })...)
	slices.Sort(names)
	var errs []error
	for _, name := range slices.Compact(names) {
		gone, err := m.sweepOne(ctx, s, name)
		errs = append(errs, err)
		if gone {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}

func (m *Manager) sweepOne(ctx context.Context, s *sweeping, name string) (removed bool, err error) {
	end, other := m.tryBegin(name)
	if other != nil {
		return false, nil
	}
	defer end()
	m.mu.Lock()
	spared := s.spared[name]
	m.mu.Unlock()
	if spared {
		return false, nil
	}
	if l, known := m.find(name); !s.stale(name, l.port, known) {
		return false, nil
	}
	err = m.remove(ctx, name)
	return err == nil, err
}
