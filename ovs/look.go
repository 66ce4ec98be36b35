package ovs

import (
	"maps"
	"slices"
)

// BridgeIDs are the external_ids of a bridge; ok is false when there is no bridge of that name.
func (d *DB) BridgeIDs(name string) (ids map[string]string, ok bool) {
	b, ok := d.bridge(name)
	if !ok {
		return nil, false
	}
	return maps.Clone(b.ExternalIDs), true
}

// LinksBelow are the links of the host, by name, that are ports of the same bridge as this internal port, if the bridge is
// one of the userspace datapath: what comes in there is seen by the kernel's own network too. A bridge's local port has
// its name. nil where the port is on another datapath, or on no bridge.
func (d *DB) LinksBelow(port string) []string {
	for _, m := range d.rows().Table(tableBridge).RowsShallow() {
		b := m.(*bridgeRow)
		if b.DatapathType != "netdev" {
			continue
		}
		ports := d.Ports(b.Name)
		if !slices.ContainsFunc(ports, func(p Port) bool { return p.Name == port && p.Type == "internal" }) {
			continue
		}
		var links []string
		for _, p := range ports {
			if p.Type == "" || p.Type == "system" {
				links = append(links, p.Name)
			}
		}
		return links
	}
	return nil
}
