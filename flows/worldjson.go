package flows

import (
	"encoding/json"
	"maps"
	"net/netip"
)

// A World is saved as JSON in reports. What follows is read back so that it compiles to the same flows.

// MarshalJSON writes the shards as one object.
func (s *Shards[V]) MarshalJSON() ([]byte, error) {
	if s == nil {
		return []byte("null"), nil
	}
	return json.Marshal(maps.Collect(s.All()))
}

// UnmarshalJSON is the reverse of MarshalJSON.
func (s *Shards[V]) UnmarshalJSON(text []byte) error {
	var m map[string]V
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	var none *Shards[V]
	*s = *none.With(m, nil)
	return nil
}

// UnmarshalJSON reads ports and ranges, and puts them together as NewServices does.
func (s *Services) UnmarshalJSON(text []byte) error {
	var saved struct {
		Ports map[Owner]*ServicePort
		CIDRs []netip.Prefix
	}
	if err := json.Unmarshal(text, &saved); err != nil {
		return err
	}
	var ports []*ServicePort
	for o, p := range saved.Ports {
		if p != nil && p.Owner == o {
			ports = append(ports, p)
		}
	}
	*s = *NewServices(ports, saved.CIDRs)
	return nil
}
