package ovs

import (
	"maps"
	"slices"

	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
)

// The tables and columns that are read, and no others: a column that the model does not have would
// stop libovsdb's cache at the first update of it, so the monitor lists each field (monitored below).
// Frequently changing columns, such as statistics, are left out on purpose.
const (
	tableRoot      = "Open_vSwitch"
	tableBridge    = "Bridge"
	tablePort      = "Port"
	tableInterface = "Interface"
	tableFlowTable = "Flow_Table"
)

type rootRow struct {
	UUID           string            `ovsdb:"_uuid"`
	CurCfg         int               `ovsdb:"cur_cfg"`
	NextCfg        int               `ovsdb:"next_cfg"`
	OVSVersion     *string           `ovsdb:"ovs_version"`
	DBVersion      *string           `ovsdb:"db_version"`
	DatapathTypes  []string          `ovsdb:"datapath_types"`
	InterfaceTypes []string          `ovsdb:"iface_types"`
	OtherConfig    map[string]string `ovsdb:"other_config"`
	ExternalIDs    map[string]string `ovsdb:"external_ids"`
}

type bridgeRow struct {
	UUID         string            `ovsdb:"_uuid"`
	Name         string            `ovsdb:"name"`
	DatapathType string            `ovsdb:"datapath_type"`
	FailMode     *string           `ovsdb:"fail_mode"`
	Protocols    []string          `ovsdb:"protocols"`
	Ports        []string          `ovsdb:"ports"`
	FlowTables   map[int]string    `ovsdb:"flow_tables"`
	OtherConfig  map[string]string `ovsdb:"other_config"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
}

type portRow struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"`
	Interfaces []string `ovsdb:"interfaces"`
}

type interfaceRow struct {
	UUID          string            `ovsdb:"_uuid"`
	Name          string            `ovsdb:"name"`
	Type          string            `ovsdb:"type"`
	Options       map[string]string `ovsdb:"options"`
	MAC           *string           `ovsdb:"mac"`
	MACInUse      *string           `ovsdb:"mac_in_use"`
	MTURequest    *int              `ovsdb:"mtu_request"`
	OFPort        *int              `ovsdb:"ofport"`
	OFPortRequest *int              `ovsdb:"ofport_request"`
	Error         *string           `ovsdb:"error"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
}

type flowTableRow struct {
	UUID     string   `ovsdb:"_uuid"`
	Name     *string  `ovsdb:"name"`
	Prefixes []string `ovsdb:"prefixes"`
}

func databaseModel() (model.ClientDBModel, error) {
	return model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		tableRoot: &rootRow{}, tableBridge: &bridgeRow{}, tablePort: &portRow{},
		tableInterface: &interfaceRow{}, tableFlowTable: &flowTableRow{},
	})
}

func monitored() []client.MonitorOption {
	r, b, p, i, f := &rootRow{}, &bridgeRow{}, &portRow{}, &interfaceRow{}, &flowTableRow{}
	return []client.MonitorOption{
		client.WithTable(r, &r.CurCfg, &r.NextCfg, &r.OVSVersion, &r.DBVersion, &r.DatapathTypes,
			&r.InterfaceTypes, &r.OtherConfig, &r.ExternalIDs),
		client.WithTable(b, &b.Name, &b.DatapathType, &b.FailMode, &b.Protocols, &b.Ports, &b.FlowTables,
			&b.OtherConfig, &b.ExternalIDs),
		client.WithTable(p, &p.Name, &p.Interfaces),
		client.WithTable(i, &i.Name, &i.Type, &i.Options, &i.MAC, &i.MACInUse, &i.MTURequest, &i.OFPort,
			&i.OFPortRequest, &i.Error, &i.ExternalIDs),
		client.WithTable(f, &f.Name, &f.Prefixes),
	}
}

// libovsdb copies rows often, and by way of JSON unless a model can copy itself. Values behind
// pointers are never written to, by nobody, so they are shared.

func (b *bridgeRow) CloneModel() model.Model { c := &bridgeRow{}; b.CloneModelInto(c); return c }

func (b *bridgeRow) CloneModelInto(to model.Model) {
	c := to.(*bridgeRow)
	*c = *b
	c.Protocols, c.Ports = slices.Clone(b.Protocols), slices.Clone(b.Ports)
	c.FlowTables, c.OtherConfig, c.ExternalIDs = maps.Clone(b.FlowTables), maps.Clone(b.OtherConfig), maps.Clone(b.ExternalIDs)
}

func (p *portRow) CloneModel() model.Model { c := &portRow{}; p.CloneModelInto(c); return c }

func (p *portRow) CloneModelInto(to model.Model) {
	c := to.(*portRow)
	*c = *p
	c.Interfaces = slices.Clone(p.Interfaces)
}

func (i *interfaceRow) CloneModel() model.Model { c := &interfaceRow{}; i.CloneModelInto(c); return c }

func (i *interfaceRow) CloneModelInto(to model.Model) {
	c := to.(*interfaceRow)
	*c = *i
	c.Options, c.ExternalIDs = maps.Clone(i.Options), maps.Clone(i.ExternalIDs)
}

// deref is the value of an optional column, zero when it is not set.
func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
