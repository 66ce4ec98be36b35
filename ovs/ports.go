package ovs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// Port is a port of a bridge with its one interface.
type Port struct {
	Name string
	// OFPortRequest is the OpenFlow number that was asked for, 0 for none.
	OFPortRequest int
	// OFPort is the OpenFlow number: 0 while ovs-vswitchd has not said, −1 when it failed.
	OFPort int
	// MAC is Interface.mac_in_use, what the device has.
	MAC net.HardwareAddr
	// Type is Interface.type; empty means a device of the system.
	Type string
	// ExternalIDs are those of the Interface row.
	ExternalIDs map[string]string
	// Error is Interface.error: why ovs-vswitchd failed.
	Error string
}

// Ports are the ports of a bridge by name, infrastructure and local port included, as OVSDB last told.
func (d *DB) Ports(bridge string) []Port {
	c := d.rows()
	b, ok := d.bridge(bridge)
	if !ok {
		return nil
	}
	rows, interfaces := c.Table(tablePort).RowsShallow(), c.Table(tableInterface).RowsShallow()
	ports := make([]Port, 0, len(b.Ports))
	for _, uuid := range b.Ports {
		if p, ok := rows[uuid].(*portRow); ok && len(p.Interfaces) > 0 {
			if i, ok := interfaces[p.Interfaces[0]].(*interfaceRow); ok {
				ports = append(ports, portOf(p, i))
			}
		}
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return ports
}

// AddPort is StartPort and then WaitPort.
func (d *DB) AddPort(ctx context.Context, bridge string, p Port) (Port, error) {
	if err := d.StartPort(ctx, bridge, p); err != nil {
		return Port{}, err
	}
	return d.WaitPort(ctx, bridge, p.Name)
}

// StartPort adds a port by its Name, Type, OFPortRequest and ExternalIDs and returns when the row is
// committed and among Ports; ovs-vswitchd is only beginning with it then. Callers that arrive while a
// transaction is under way share the next one. A port of that name on this bridge, with the same
// external_ids, is adopted; any other is an error.
func (d *DB) StartPort(ctx context.Context, bridge string, p Port) error {
	if err := d.change(ctx, []string{p.Name}, func(t *txn) error { return d.buildPort(t, bridge, p) }); err != nil {
		return fmt.Errorf("adding port %s to bridge %s: %w", p.Name, bridge, err)
	}
	return nil
}

func (d *DB) buildPort(t *txn, bridge string, p Port) error {
	c := d.rows()
	b, ok := d.bridge(bridge)
	if !ok {
		return fmt.Errorf("there is no bridge %s: restart the agent to make it again", bridge)
	}
	if row, ok := byName(c, tablePort, &portRow{Name: p.Name}); ok {
		if !slices.Contains(b.Ports, row.UUID) {
			return fmt.Errorf("the name is taken by a port of bridge %s: remove it there (ovs-vsctl del-port %s)", bridgeOf(c, row.UUID), p.Name)
		}
		if i, ok := interfaceOf(c, row); !ok || !maps.Equal(i.ExternalIDs, p.ExternalIDs) {
			return fmt.Errorf("the name is taken by a port with other external_ids: delete it first (ovs-vsctl del-port %s)", p.Name)
		}
		return nil
	}
	iface := ovsdb.Row{"name": p.Name, "type": p.Type, "external_ids": mapOf(p.ExternalIDs)}
	if p.OFPortRequest != 0 {
		iface["ofport_request"] = p.OFPortRequest
	}
	t.mutate(tableBridge, b.UUID, *ovsdb.NewMutation("ports", ovsdb.MutateOperationInsert, setOf(t.insertPort(p.Name, iface))))
	return nil
}

func (t *txn) insertPort(name string, iface ovsdb.Row) ovsdb.UUID {
	return t.insert(tablePort, ovsdb.Row{"name": name, "interfaces": t.insert(tableInterface, iface)})
}

// WaitPort returns when ovs-vswitchd has given the port its OpenFlow number, which need not be the
// one requested. A port that ovs-vswitchd could not make is removed again; the error has its reason.
func (d *DB) WaitPort(ctx context.Context, bridge, name string) (Port, error) {
	var p Port
	err := d.await(ctx, func() (bool, error) {
		var ok bool
		if p, ok = d.port(bridge, name); !ok {
			return false, fmt.Errorf("it was removed from bridge %s meanwhile", bridge)
		}
		return p.OFPort != 0, nil
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return Port{}, fmt.Errorf("port %s has no OpenFlow number yet: %w; %s", name, err, remedyDaemon)
	case err != nil:
		return Port{}, fmt.Errorf("port %s: %w", name, err)
	case p.OFPort < 0:
		err := fmt.Errorf("ovs-vswitchd cannot use port %s: %s", name, cmp.Or(p.Error, "no reason given, see its log"))
		if gone := d.DeletePorts(ctx, bridge, name); gone != nil {
			err = fmt.Errorf("%w; and then %w", err, gone)
		}
		return Port{}, err
	}
	return p, nil
}

const remedyDaemon = "is ovs-vswitchd running (systemctl status openvswitch-switch)?"

// DeletePorts removes these ports, with their interfaces, from this bridge and from no other. Missing
// ones are no error. Callers share transactions as in StartPort.
func (d *DB) DeletePorts(ctx context.Context, bridge string, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	err := d.change(ctx, names, func(t *txn) error {
		c := d.rows()
		b, ok := d.bridge(bridge)
		if !ok {
			return nil
		}
		var gone []ovsdb.UUID
		for _, name := range names {
			if p, ok := byName(c, tablePort, &portRow{Name: name}); ok && name != bridge && slices.Contains(b.Ports, p.UUID) {
				gone = append(gone, ovsdb.UUID{GoUUID: p.UUID})
			}
		}
		if len(gone) > 0 { // rows that nothing refers to any more are removed by the server
			t.mutate(tableBridge, b.UUID, *ovsdb.NewMutation("ports", ovsdb.MutateOperationDelete, setOf(gone...)))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("deleting ports %v of bridge %s: %w", names, bridge, err)
	}
	return nil
}

// SetPortIDs overwrites these keys of the port's external_ids and leaves others alone.
func (d *DB) SetPortIDs(ctx context.Context, bridge, name string, ids map[string]string) error {
	err := d.change(ctx, []string{name}, func(t *txn) error {
		i, ok := d.iface(bridge, name)
		if !ok {
			return fmt.Errorf("there is no such port: add it first")
		}
		if !contains(i.ExternalIDs, ids) {
			t.mutate(tableInterface, i.UUID, putKeys("external_ids", ids)...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("setting external_ids of port %s of bridge %s: %w", name, bridge, err)
	}
	return nil
}

// port is one port of this bridge.
func (d *DB) port(bridge, name string) (Port, bool) {
	i, ok := d.iface(bridge, name)
	if !ok {
		return Port{}, false
	}
	return portOf(&portRow{Name: name}, i), true
}

// iface is the interface row of one port of this bridge.
func (d *DB) iface(bridge, name string) (*interfaceRow, bool) {
	return ifaceIn(d.rows(), bridge, name)
}

func ifaceIn(c *cache.TableCache, bridge, name string) (*interfaceRow, bool) {
	b, ok := byName(c, tableBridge, &bridgeRow{Name: bridge})
	if !ok {
		return nil, false
	}
	p, ok := byName(c, tablePort, &portRow{Name: name})
	if !ok || !slices.Contains(b.Ports, p.UUID) {
		return nil, false
	}
	return interfaceOf(c, p)
}

func portOf(p *portRow, i *interfaceRow) Port {
	mac, _ := net.ParseMAC(deref(i.MACInUse)) // not set, or not a MAC: unknown either way
	return Port{
		Name: p.Name, OFPortRequest: deref(i.OFPortRequest), OFPort: deref(i.OFPort), MAC: mac,
		Type: i.Type, ExternalIDs: maps.Clone(i.ExternalIDs), Error: deref(i.Error),
	}
}

// contains says that m has every entry of part.
func contains(m, part map[string]string) bool {
	for k, v := range part {
		if has, ok := m[k]; !ok || has != v {
			return false
		}
	}
	return true
}
