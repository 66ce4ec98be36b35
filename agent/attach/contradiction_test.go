package attach

import (
	"net/netip"
	"slices"
)

// check looks whether the node contradicts itself or what the runtime was told.
func (g *game) check() {
	carried, leased := map[netip.Addr]string{}, map[netip.Addr]string{}
	links := g.carried()
	for name, addresses := range links {
		if g.live[name] == nil && g.limbo[name] == nil {
			g.Errorf("veth %s belongs to nothing", name)
		}
		for _, a := range addresses {
			if other, taken := carried[a]; taken {
				g.Errorf("%s and %s both carry %s", name, other, a)
			}
			carried[a] = name
		}
	}
	rows := map[string]bool{}
	for _, p := range g.ports.Ports(bridge) {
		if !isOurs(p) {
			continue
		}
		rows[p.Name] = true
		if g.live[p.Name] == nil && g.limbo[p.Name] == nil {
			g.Errorf("row %s belongs to nothing", p.Name)
		}
		for _, a := range addressesOf(p) {
			if other, taken := leased[a]; taken {
				g.Errorf("%s and %s both lease %s", p.Name, other, a)
			}
			leased[a] = p.Name
		}
	}
	attachments := 0
	for _, list := range g.a.Attachments() {
		attachments += len(list)
	}
	healthy := 0
	for name, p := range g.live {
		if !slices.Equal(links[name], p.result.Addresses) {
			g.Errorf("live %s carries %v, not %v", name, links[name], p.result.Addresses)
		}
		if !g.damaged[name] {
			healthy++
			if !rows[name] {
				g.Errorf("live %s has no row", name)
			}
		}
	}
	if attachments < healthy || attachments > healthy+len(g.limbo) {
		g.Errorf("%d attachments of %d healthy interfaces and %d in limbo", attachments, healthy, len(g.limbo))
	}
	for _, r := range g.a.Usage().Ranges {
		used := 0
		for a := range carried {
			if assignable(r.CIDR, a) {
				used++
			}
		}
		if r.Used+r.Cooling+r.Free != r.Capacity || r.Free < 0 || r.Used < used {
			g.Errorf("usage %+v with %d addresses on interfaces", r, used)
		}
	}
}
