package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// BridgeSpec is how a bridge shall be.
type BridgeSpec struct {
	Name string
	// DatapathType is "system" (the kernel; the same as empty) or "netdev" (userspace).
	DatapathType string
	// TableNames name the OpenFlow tables, so that ovs-ofctl --names reads well.
	TableNames map[uint8]string
	// Prefixes are the fields, up to three, that the classifier of each named table looks up by prefix, so
	// that a megaflow matches no more bits of an address than it takes (Flow_Table.prefixes,
	// ovs-vswitchd.conf.db(5)). Empty leaves OVS's default: IPv4 source and destination.
	Prefixes []string
	// ExternalIDs mark the bridge as ours; at least one is needed. Others on it are left alone.
	ExternalIDs map[string]string
	// Ports are the infrastructure ports: tunnel, gateway.
	Ports []PortSpec
}

// PortSpec is how an infrastructure port shall be. Zero fields of number and MAC are left to OVS.
type PortSpec struct {
	Name string
	// Type is Interface.type: geneve, vxlan, internal.
	Type string
	// OFPort is the OpenFlow number, 1 to 65279.
	OFPort int
	MAC    net.HardwareAddr
	// MTU in bytes.
	MTU int
	// Options are Interface.options, all of them: others are removed.
	Options map[string]string
	// ExternalIDs are set on the Interface; others on it are left alone.
	ExternalIDs map[string]string
}

// protocols are all that ovs-vswitchd knows: we speak OpenFlow15, plain tools speak OpenFlow10.
func protocols() []string {
	return []string{"OpenFlow10", "OpenFlow11", "OpenFlow12", "OpenFlow13", "OpenFlow14", "OpenFlow15"}
}

// EnsureBridge creates or repairs a bridge and its infrastructure ports in one transaction, adopting
// what is there; it deletes neither bridge nor ports. It returns a sentence for each thing that was
// created or repaired: none, and no transaction, when all was right. It waits until ovs-vswitchd has
// given the infrastructure ports their OpenFlow numbers, and says why when it could not.
func (d *DB) EnsureBridge(ctx context.Context, spec BridgeSpec) (repaired []string, err error) {
	r := &repair{db: d, spec: spec}
	if err := r.plan(); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	if err := d.commit(ctx, &r.txn); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	if err := d.settle(ctx, spec, len(r.ops) > 0); err != nil {
		return r.did, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	return r.did, nil
}

// settle waits until ovs-vswitchd has done what the database says, then looks at the ports.
func (d *DB) settle(ctx context.Context, spec BridgeSpec, barrier bool) error {
	if barrier {
		if err := d.barrier(ctx); err != nil {
			return fmt.Errorf("ovs-vswitchd has not taken up the change: %w; %s", err, remedyDaemon)
		}
	}
	for _, s := range spec.Ports {
		var p Port
		err := d.await(ctx, func() (bool, error) { p, _ = d.port(spec.Name, s.Name); return p.OFPort != 0, nil })
		switch {
		case err != nil:
			return fmt.Errorf("port %s has no OpenFlow number yet: %w; %s", s.Name, err, remedyDaemon)
		case p.OFPort < 0:
			return fmt.Errorf("ovs-vswitchd cannot make port %s: %s", s.Name, cmp.Or(p.Error, "no reason given, see its log"))
		case s.OFPort != 0 && p.OFPort != s.OFPort:
			return fmt.Errorf("port %s got OpenFlow number %d, not %d: another port has that; delete it", s.Name, p.OFPort, s.OFPort)
		}
	}
	return nil
}

// barrier waits until ovs-vswitchd has done what the database said last: then it copies next_cfg to
// cur_cfg, in one transaction with the ofports.
func (d *DB) barrier(ctx context.Context) error {
	r := d.root()
	if r == nil {
		return d.errNoRoot()
	}
	want := r.NextCfg
	if err := d.await(ctx, func() (bool, error) { r := d.root(); return r != nil && r.CurCfg >= want, nil }); err != nil {
		return d.because(err)
	}
	// libovsdb takes up a transaction table by table, and the ofports may come after cur_cfg. It reads
	// the answer to an echo only when it is through.
	d.mu.Lock()
	s := d.session
	d.mu.Unlock()
	return s.client.Echo(ctx)
}

// DeleteBridge removes a bridge with all its ports. A missing one is no error; one that lacks any of the
// external_ids of mark belongs to somebody else and is refused.
func (d *DB) DeleteBridge(ctx context.Context, name string, mark map[string]string) error {
	b, ok := d.bridge(name)
	if !ok {
		return nil
	}
	for k, v := range mark {
		if b.ExternalIDs[k] != v {
			return fmt.Errorf("bridge %s is not ours: external_ids:%s is %q, not %q; delete it with ovs-vsctl del-br if nobody needs it", name, k, b.ExternalIDs[k], v)
		}
	}
	r := d.root()
	if r == nil {
		return d.errNoRoot()
	}
	t := &txn{}
	t.mutate(tableRoot, r.UUID,
		*ovsdb.NewMutation("bridges", ovsdb.MutateOperationDelete, setOf(ovsdb.UUID{GoUUID: b.UUID})),
		*ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1))
	if err := d.commit(ctx, t); err != nil {
		return fmt.Errorf("deleting bridge %s: %w", name, err)
	}
	return nil
}

// repair collects the difference between a spec and the database.
type repair struct {
	txn
	db   *DB
	spec BridgeSpec
	did  []string
}

func (r *repair) said(format string, args ...any) {
	r.did = append(r.did, fmt.Sprintf(format, args...))
}

func (r *repair) plan() error {
	if len(r.spec.ExternalIDs) == 0 {
		return errors.New("it needs external_ids, to be known as ours again")
	}
	root := r.db.root()
	if root == nil {
		return r.db.errNoRoot()
	}
	b, ok := r.db.bridge(r.spec.Name)
	if !ok {
		return r.create(root)
	}
	if err := r.occupied(b); err != nil {
		return err
	}
	r.columns(b)
	r.tableNames(b)
	var added []ovsdb.UUID
	for _, s := range r.spec.Ports {
		id, err := r.port(b, s)
		if err != nil {
			return err
		}
		added = append(added, id...)
	}
	if len(added) > 0 {
		r.mutate(tableBridge, b.UUID, *ovsdb.NewMutation("ports", ovsdb.MutateOperationInsert, setOf(added...)))
	}
	if len(r.ops) > 0 {
		r.mutate(tableRoot, root.UUID, *ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1))
	}
	return nil
}

// occupied refuses a bridge that carries none of our marks and is in use.
func (r *repair) occupied(b *bridgeRow) error {
	for k, v := range r.spec.ExternalIDs {
		if b.ExternalIDs[k] == v {
			return nil
		}
	}
	var others []string
	for _, p := range r.db.Ports(b.Name) {
		if p.Name != b.Name {
			others = append(others, p.Name)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("it exists, is not ours (no external_ids %s) and is occupied by %s: choose another bridge name, or remove it with ovs-vsctl del-br %s",
		text(r.spec.ExternalIDs), strings.Join(others, ", "), b.Name)
}

func (r *repair) create(root *rootRow) error {
	s := r.spec
	ports := []ovsdb.UUID{r.insertPort(s.Name, ovsdb.Row{"name": s.Name, "type": "internal"})}
	r.said("created bridge %s", s.Name)
	for _, p := range s.Ports {
		id, err := r.port(&bridgeRow{Name: s.Name}, p)
		if err != nil {
			return err
		}
		ports = append(ports, id...)
	}
	tables := map[int]ovsdb.UUID{}
	for id, name := range s.TableNames {
		tables[int(id)] = r.insert(tableFlowTable, ovsdb.Row{"name": name, "prefixes": setOf(s.Prefixes...)})
	}
	bridge := r.insert(tableBridge, ovsdb.Row{
		"name": s.Name, "datapath_type": s.DatapathType, "fail_mode": "secure", "protocols": setOf(protocols()...),
		"other_config": mapOf(map[string]string{inBand: "true"}), "external_ids": mapOf(s.ExternalIDs),
		"flow_tables": mapOf(tables), "ports": setOf(ports...),
	})
	r.mutate(tableRoot, root.UUID,
		*ovsdb.NewMutation("bridges", ovsdb.MutateOperationInsert, setOf(bridge)),
		*ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1))
	return nil
}

// inBand keeps OVS from adding hidden flows for in-band controllers.
const inBand = "disable-in-band"

func (r *repair) columns(b *bridgeRow) {
	row := ovsdb.Row{}
	if was := deref(b.FailMode); was != "secure" {
		row["fail_mode"] = "secure"
		r.said("set fail_mode of bridge %s to secure, was %s", b.Name, cmp.Or(was, "not set"))
	}
	if have := slices.Sorted(slices.Values(b.Protocols)); !slices.Equal(have, protocols()) {
		row["protocols"] = setOf(protocols()...)
		r.said("set protocols of bridge %s to OpenFlow10 to OpenFlow15, were %s", b.Name, cmp.Or(strings.Join(have, ","), "not set"))
	}
	if want, have := cmp.Or(r.spec.DatapathType, "system"), cmp.Or(b.DatapathType, "system"); want != have {
		row["datapath_type"] = want
		r.said("set datapath_type of bridge %s to %s, was %s", b.Name, want, have)
	}
	if len(row) > 0 {
		r.update(tableBridge, b.UUID, row)
	}
	r.keys(tableBridge, b.UUID, "bridge "+b.Name, "other_config", b.OtherConfig, map[string]string{inBand: "true"})
	r.keys(tableBridge, b.UUID, "bridge "+b.Name, "external_ids", b.ExternalIDs, r.spec.ExternalIDs)
}

// keys sets those keys of a map column that differ.
func (r *repair) keys(table, uuid, what, column string, have, want map[string]string) {
	differ := maps.Clone(want)
	maps.DeleteFunc(differ, func(k, v string) bool { has, ok := have[k]; return ok && has == v })
	if len(differ) == 0 {
		return
	}
	r.mutate(table, uuid, putKeys(column, differ)...)
	r.said("set %s of %s: %s", column, what, text(differ))
}

// tableNames makes the names and prefixes of the bridge's tables exactly ours. Rows of Flow_Table may be shared
// with other bridges, so a wrong one is replaced and not changed.
func (r *repair) tableNames(b *bridgeRow) {
	c := r.db.rows()
	var wrong []int
	for id, uuid := range b.FlowTables {
		row, ok := byUUID[*flowTableRow](c, tableFlowTable, uuid)
		if !ok || deref(row.Name) != r.spec.TableNames[uint8(id)] || !sameSet(row.Prefixes, r.spec.Prefixes) {
			wrong = append(wrong, id)
		}
	}
	add := map[int]ovsdb.UUID{}
	for id, name := range r.spec.TableNames {
		if _, there := b.FlowTables[int(id)]; !there || slices.Contains(wrong, int(id)) {
			add[int(id)] = r.insert(tableFlowTable, ovsdb.Row{"name": name, "prefixes": setOf(r.spec.Prefixes...)})
		}
	}
	if len(wrong) == 0 && len(add) == 0 {
		return
	}
	r.mutate(tableBridge, b.UUID,
		*ovsdb.NewMutation("flow_tables", ovsdb.MutateOperationDelete, setOf(wrong...)),
		*ovsdb.NewMutation("flow_tables", ovsdb.MutateOperationInsert, mapOf(add)))
	r.said("named the tables of bridge %s: %d new or changed, %d removed or replaced", b.Name, len(add), len(wrong))
}

// sameSet compares sets: the order in which OVSDB lists one means nothing.
func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// port repairs one infrastructure port, or returns the new row that the bridge must refer to.
func (r *repair) port(b *bridgeRow, s PortSpec) ([]ovsdb.UUID, error) {
	c := r.db.rows()
	row := ovsdb.Row{}
	if s.OFPort != 0 {
		row["ofport_request"] = s.OFPort
	}
	if s.MTU != 0 {
		row["mtu_request"] = s.MTU
	}
	if s.MAC != nil {
		row["mac"] = s.MAC.String()
	}
	p, ok := byName(c, tablePort, &portRow{Name: s.Name})
	if !ok {
		row["name"], row["type"], row["options"], row["external_ids"] = s.Name, s.Type, mapOf(s.Options), mapOf(s.ExternalIDs)
		r.said("created %s port %s of bridge %s", s.Type, s.Name, b.Name)
		return []ovsdb.UUID{r.insertPort(s.Name, row)}, nil
	}
	i, ok := interfaceOf(c, p)
	if !ok || !slices.Contains(b.Ports, p.UUID) {
		return nil, fmt.Errorf("port %s exists on bridge %s: choose another name, or remove it with ovs-vsctl del-port %s",
			s.Name, cmp.Or(bridgeOf(c, p.UUID), "(none)"), s.Name)
	}
	for column, have := range map[string]any{"ofport_request": deref(i.OFPortRequest), "mtu_request": deref(i.MTURequest), "mac": deref(i.MAC)} {
		if want, asked := row[column]; asked && want == have {
			delete(row, column)
		}
	}
	if i.Type != s.Type {
		row["type"] = s.Type
	}
	if !maps.Equal(i.Options, s.Options) {
		row["options"] = mapOf(s.Options)
	}
	if len(row) > 0 {
		r.update(tableInterface, i.UUID, row)
		r.said("set %s of port %s to %s", strings.Join(slices.Sorted(maps.Keys(row)), ", "), s.Name, s)
	}
	r.keys(tableInterface, i.UUID, "port "+s.Name, "external_ids", i.ExternalIDs, s.ExternalIDs)
	return nil, nil
}

// String is the spec as one would say it to ovs-vsctl.
func (s PortSpec) String() string {
	said := []string{"type=" + s.Type}
	if s.OFPort != 0 {
		said = append(said, fmt.Sprintf("ofport_request=%d", s.OFPort))
	}
	if s.MTU != 0 {
		said = append(said, fmt.Sprintf("mtu_request=%d", s.MTU))
	}
	if s.MAC != nil {
		said = append(said, "mac="+s.MAC.String())
	}
	if len(s.Options) > 0 {
		said = append(said, "options:"+text(s.Options))
	}
	return strings.Join(said, " ")
}

// text is a map as k=v,k=v, sorted.
func text(m map[string]string) string {
	said := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		said = append(said, k+"="+m[k])
	}
	return strings.Join(said, ",")
}
