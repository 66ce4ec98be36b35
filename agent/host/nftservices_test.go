package host

import (
	"testing"

	"sigs.k8s.io/knftables"
)

func TestElementsAreTheSameWithAndWithoutTheNamesOfProtocols(t *testing.T) {
	element := func(key ...string) *knftables.Element { return &knftables.Element{Key: key} }
	want := []string{"tcp . 30080", "udp . 6", "sctp . 17", "198.18.0.1 . udp . 53", "198.18.0.0/16"}
	for name, list := range map[string][]*knftables.Element{
		"names":   {element("tcp", "30080"), element("udp", "6"), element("sctp", "17"), element("198.18.0.1", "udp", "53"), element("198.18.0.0/16")},
		"numbers": {element("6", "30080"), element("17", "6"), element("132", "17"), element("198.18.0.1", "17", "53"), element("198.18.0.0/16")},
	} {
		if wrong := compareElements(want, list); wrong != "" {
			t.Errorf("with %s the set %s", name, wrong)
		}
	}
	if got, want := compareElements(want[:1], []*knftables.Element{element("17", "30080")}), "lacked tcp . 30080, added and had udp . 30080 too many, removed"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
