package ovs

import (
	"context"
	"fmt"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// Info is what Open vSwitch says of itself.
type Info struct {
	OVSVersion, DBVersion string
	// SystemID is external_ids:system-id, which the distribution's start-up sets.
	SystemID string
	// DatapathTypes and InterfaceTypes are those that this ovs-vswitchd supports.
	DatapathTypes, InterfaceTypes []string
}

// Info is what Open vSwitch says of itself. Fields are empty until ovs-vswitchd has run once.
func (d *DB) Info() Info {
	r := d.root()
	if r == nil {
		return Info{}
	}
	return Info{
		OVSVersion: deref(r.OVSVersion), DBVersion: deref(r.DBVersion), SystemID: r.ExternalIDs["system-id"],
		DatapathTypes: slices.Sorted(slices.Values(r.DatapathTypes)), InterfaceTypes: slices.Sorted(slices.Values(r.InterfaceTypes)),
	}
}

// restoreWait holds packets back after a start of ovs-vswitchd until a controller has restored its
// flows: ovs-vswitchd.conf.db(5), Open_vSwitch, other_config.
const restoreWait = "flow-restore-wait"

// Restoring says that ovs-vswitchd forwards nothing until FinishRestore.
func (d *DB) Restoring() bool {
	r := d.root()
	return r != nil && r.OtherConfig[restoreWait] == "true"
}

// FinishRestore lets ovs-vswitchd forward packets by the flows that it has been given by now.
func (d *DB) FinishRestore(ctx context.Context) error {
	r := d.root()
	if r == nil {
		return d.errNoRoot()
	}
	if _, set := r.OtherConfig[restoreWait]; !set {
		return nil
	}
	t := &txn{}
	t.mutate(tableRoot, r.UUID, *ovsdb.NewMutation("other_config", ovsdb.MutateOperationDelete, setOf(restoreWait)))
	if err := d.commit(ctx, t); err != nil {
		return fmt.Errorf("removing other_config:%s: %w", restoreWait, err)
	}
	return nil
}

func (d *DB) errNoRoot() error {
	return fmt.Errorf("OVSDB at %s has no row in table %s: initialise it with ovs-vsctl init", d.config.Endpoint, tableRoot)
}

func (d *DB) rows() *cache.TableCache {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session.cache
}

// root is the one row of table Open_vSwitch, nil when there is none.
func (d *DB) root() *rootRow {
	for _, m := range d.rows().Table(tableRoot).RowsShallow() {
		return m.(*rootRow)
	}
	return nil
}

// byName finds a row by its name, which OVSDB keeps unique in the tables Bridge, Port and Interface.
func byName[T model.Model](c *cache.TableCache, table string, like T) (T, bool) {
	_, m, err := c.Table(table).RowByModel(like)
	row, ok := m.(T)
	return row, ok && err == nil
}

func (d *DB) bridge(name string) (*bridgeRow, bool) {
	return byName(d.rows(), tableBridge, &bridgeRow{Name: name})
}

// byUUID reads one row; rows are replaced in the cache, never changed, so what is read stays true.
func byUUID[T model.Model](c *cache.TableCache, table, uuid string) (T, bool) {
	row, ok := c.Table(table).Row(uuid).(T)
	return row, ok
}

// interfaceOf is the (first) interface of a port.
func interfaceOf(c *cache.TableCache, p *portRow) (*interfaceRow, bool) {
	if len(p.Interfaces) == 0 {
		return nil, false
	}
	return byUUID[*interfaceRow](c, tableInterface, p.Interfaces[0])
}

// bridgeOf is the name of the bridge that has a port.
func bridgeOf(c *cache.TableCache, port string) string {
	for _, m := range c.Table(tableBridge).RowsShallow() {
		if b := m.(*bridgeRow); slices.Contains(b.Ports, port) {
			return b.Name
		}
	}
	return ""
}
