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
// (after a reboot), and host ends without a row, are removed; everything else is taken over as it is.
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
	defer m.mu.Unlock()
	return len(m.held), removed, err
}

// sweep removes what stale picks among all attachments, and among the host ends of ours that belong to
// none (known is false). What a command is under way for when it begins is left alone.
func (m *Manager) sweep(ctx context.Context, stale func(name string, p ovs.Port, known bool) bool) (removed int, err error) {
	m.mu.Lock()
	busy := maps.Clone(m.busy)
	names := slices.Collect(maps.Keys(m.held))
	m.mu.Unlock()
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
		if _, underWay := busy[name]; underWay {
			continue
		}
		gone, err := m.sweepOne(ctx, name, stale)
		errs = append(errs, err)
		if gone {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}

func (m *Manager) sweepOne(ctx context.Context, name string, stale func(string, ovs.Port, bool) bool) (removed bool, err error) {
	end, other := m.tryBegin(name)
	if other != nil {
		return false, nil
	}
	defer end()
	if l, known := m.find(name); !stale(name, l.port, known) {
		return false, nil
	}
	err = m.remove(ctx, name)
	return err == nil, err
}
