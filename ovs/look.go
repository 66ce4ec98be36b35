package ovs

import "maps"

// BridgeIDs are the external_ids of a bridge; ok is false when there is no bridge of that name.
func (d *DB) BridgeIDs(name string) (ids map[string]string, ok bool) {
	b, ok := d.bridge(name)
	if !ok {
		return nil, false
	}
	return maps.Clone(b.ExternalIDs), true
}
