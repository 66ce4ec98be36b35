package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twill-net/twill/ovs"
)

// Repair puts back what somebody else removed: the port row of an attachment whose device still exists,
// and external_ids of ours that were changed. It is to be called after changes of OVSDB, and costs one
// look at the rows when all is well; repaired says what was done, in words. What a command is under way
// for is left alone. An attachment that lost its row and its device is given up: its addresses rest.
func (m *Manager) Repair(ctx context.Context) (repaired []string, err error) {
	if m.cfg.Ports.Alive() != nil {
		return nil, nil // the rows are yesterday's; the connection's return is a change as well
	}
	lost := m.lost()
	if len(lost) == 0 {
		return nil, nil
	}
	links, err := m.cfg.Links.Veths(LinkPrefix)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range lost {
		what, err := m.restore(ctx, name, slices.Contains(links, name))
		if what != "" {
			repaired = append(repaired, what)
		}
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// lost names the attachments whose row is not what it has to be.
func (m *Manager) lost() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	rows := map[string]ovs.Port{}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		rows[p.Name] = p
	}
	var out []string
	for name, l := range m.held {
		if _, busy := m.busy[name]; !busy && l.started && !l.leaving && !sameIDs(rows[name], l.port) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// sameIDs is true when a row has all external_ids that it has to have; others are nobody's business.
func sameIDs(row, want ovs.Port) bool {
	for k, v := range want.ExternalIDs {
		if has, ok := row.ExternalIDs[k]; !ok || has != v {
			return false
		}
	}
	return true
}

// restore repairs one attachment, unless a command is under way for it; device says whether its host end
// is there.
func (m *Manager) restore(ctx context.Context, name string, device bool) (what string, err error) {
	end, other := m.tryBegin(name)
	if other != nil {
		return "", nil
	}
	defer end()
	m.mu.Lock()
	l, held := m.held[name]
	m.mu.Unlock()
	row, there := m.port(name)
	if !held || l.leaving || there && sameIDs(row, l.port) {
		return "", nil
	}
	who := fmt.Sprintf("port %s of pod %s", name, l.port.ExternalIDs[keyPod])
	switch {
	case there:
		err, what = m.cfg.Ports.SetPortIDs(ctx, m.cfg.Bridge, name, l.port.ExternalIDs), "put back the external_ids of "+who
	case device:
		err, what = m.cfg.Ports.StartPort(ctx, m.cfg.Bridge, l.port), "put back "+who
	default:
		m.forget(name)
		what = "gave up " + who + ": somebody removed it and its device"
	}
	if err != nil {
		return "", fmt.Errorf("%s was changed by somebody else and cannot be put back: %w", who, err)
	}
	return what, nil
}
