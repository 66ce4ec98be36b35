package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/ovs"
)

// teachNeighbour tells userspace Open vSwitch the MAC address of the way to the other end of a tunnel, if the kernel knows one
// and Open vSwitch does not, or knows another; taught is true then.
//
// Userspace Open vSwitch sends tunnel packets by neighbours of its own, which it learns from ARP and ND replies that pass its
// bridge, and forgets whenever the bridge's link changes. It learns only from replies for which it has to make a datapath
// flow (3.1, tnl_neigh_snoop): while there is one already, because the kernel of this host has asked the same neighbour within
// the last ten seconds, it learns nothing, asks again, and each reply keeps that flow alive. The tunnel is then dead for as
// long as anybody sends.
func teachNeighbour(ctx context.Context, d *ovs.Daemon, tunnel netip.Addr) (taught bool, err error) {
	hop, err := host.HopTo(tunnel)
	if err != nil || hop.MAC == nil {
		return false, err
	}
	known, err := d.Call(ctx, "tnl/neigh/show")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(known) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == hop.Address.String() && f[1] == hop.MAC.String() && f[2] == hop.Link {
			return false, nil
		}
	}
	if _, err := d.Call(ctx, "tnl/neigh/set", hop.Link, hop.Address.String(), hop.MAC.String()); err != nil {
		return false, fmt.Errorf("telling Open vSwitch that %s is at %s on %s: %w", hop.Address, hop.MAC, hop.Link, err)
	}
	return true, nil
}

// teach is teachNeighbour where Open vSwitch needs it: the kernel's datapath sends by the kernel's own neighbours.
func (a *Agent) teach(ctx context.Context, tunnel netip.Addr) (bool, error) {
	if a.plumbing.datapath() != "netdev" {
		return false, nil
	}
	d, err := a.daemon.current()
	if err != nil {
		return false, err
	}
	taught, err := teachNeighbour(ctx, d, tunnel)
	if taught {
		a.meter.drift("neighbour", 1)
	}
	return taught, err
}
