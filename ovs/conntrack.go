package ovs

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Connections selects entries of the connection tracker.
type Connections struct {
	Zone uint16
	// Protocol is the IP protocol number.
	Protocol uint8
	// To is where the first packet was sent, From where answers come from; each may be not valid.
	To, From netip.AddrPort
}

// FlushConntrack forgets connections, by dpctl/flush-conntrack (ovs-vswitchd(8)). Partial tuples need Open vSwitch 3.1.
// That version takes the name of a datapath for a tuple when it is given beside two of those, so none is: it fails
// where a daemon has datapaths of both types.
func (d *Daemon) FlushConntrack(ctx context.Context, c Connections) error {
	_, err := d.Call(ctx, "dpctl/flush-conntrack", fmt.Sprintf("zone=%d", c.Zone),
		tuple("dst", c.To, c.Protocol), tuple("src", c.From, c.Protocol))
	return err
}

// ForgetConnection forgets the one connection of a zone that has this tuple, in the words of dpctl/flush-conntrack. One that
// has ended since it was seen is forgotten already: no error.
func (d *Daemon) ForgetConnection(ctx context.Context, zone uint16, tuple string) error {
	_, err := d.Call(ctx, "dpctl/flush-conntrack", fmt.Sprintf("zone=%d", zone), tuple)
	if err != nil && strings.Contains(err.Error(), "(No such file or directory)") { // ENOENT, as ovs-vswitchd words it
		return nil
	}
	return err
}

func tuple(side string, at netip.AddrPort, protocol uint8) string {
	if !at.IsValid() {
		return fmt.Sprintf("ct_nw_proto=%d", protocol)
	}
	field := "ct_ipv6_"
	if at.Addr().Is4() {
		field = "ct_nw_"
	}
	return fmt.Sprintf("%s%s=%s,ct_nw_proto=%d,ct_tp_%s=%d", field, side, at.Addr(), protocol, side, at.Port())
}

// AfterRevalidation is for work that packets could undo by megaflows of before a change of the flow table. It calls
// f after each of two waits for the revalidators (revalidator/wait, ovs-vswitchd(8)): a wait ends with the round
// that is under way, and the first of these may have begun before the change. The second has not.
func (d *Daemon) AfterRevalidation(ctx context.Context, f func(context.Context) error) error {
	for range 2 {
		if _, err := d.Call(ctx, "revalidator/wait"); err != nil {
			return err
		}
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}
