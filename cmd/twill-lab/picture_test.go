package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/test/lab"
)

func TestThePictureShowsEveryNodeWithItsPods(t *testing.T) {
	s := lab.Status{
		Config: lab.Config{Tunnel: "geneve", UnderlayMTU: 1500},
		Nodes: []lab.NodeStatus{
			{Name: "node-1", Addresses: []string{"198.51.100.1", "2001:db8:100::1"}},
			{Name: "node-2", Addresses: []string{"198.51.100.2"}},
		},
		Pods: []lab.Pod{
			{Name: "a", Node: "node-1", Addresses: []netip.Addr{netip.MustParseAddr("198.18.1.2"), netip.MustParseAddr("2001:db8:42:1::2")}},
			{Name: "b", Node: "node-2", Addresses: []netip.Addr{netip.MustParseAddr("198.18.2.2")}},
		},
	}
	want := strings.TrimPrefix(`
underlay, MTU 1500, geneve between nodes
──┬───────────────────────────┬───────────────────
  │                           │
┌─┴──────────────────────┐  ┌─┴────────────────┐
│ node-1                 │  │ node-2           │
│ 198.51.100.1           │  │ 198.51.100.2     │
│ 2001:db8:100::1        │  │ br-twill         │
│ br-twill               │  │  └ b  198.18.2.2 │
│  └ a  198.18.1.2       │  │                  │
│       2001:db8:42:1::2 │  │                  │
└────────────────────────┘  └──────────────────┘
`, "\n")
	if got := picture(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
