package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// A host end carries packets between a pod and the bridge, and none between a pod and the host. But it is a link like any
// other: the userspace datapath reads along what comes in by it, and until the port is made nobody does, while the host's
// own IP stack sees all of it. What a pod sends to the MAC of its host end would be routed by the host, past all that the
// bridge has to say, and to whoever answers ARP for the gateway first a pod sends everything. So host ends are sealed:
// the table of nftables drops all IP packets that come in by a link of podGroup, and the kernel answers no ARP there.

// podGroup is the link group (ip-link(8)) of all host ends. Any number would do that nobody else uses.
const podGroup = 0x7477_706f

// Seal seals host ends that are there already. A missing one is no error.
func (l *Links) Seal(hosts ...string) error {
	h, err := routeSocket()
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for _, name := range hosts {
		link, err := h.LinkByName(name)
		if err == nil {
			err = seal(h, link, l.ProcSys)
		}
		if err != nil && !missing(err) {
			errs = append(errs, fmt.Errorf("host end %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// seal puts a host end into its group, and keeps the kernel from answering ARP by it. The latter does without where sysctls
// cannot be written: a pod has its neighbour entry before its routes, and what it sends elsewhere is dropped.
func seal(h *netlink.Handle, link netlink.Link, sysctls string) error {
	if link.Attrs().Group != podGroup {
		if err := h.LinkSetGroup(link, podGroup); err != nil {
			return fmt.Errorf("put it into link group %d: %w", podGroup, err)
		}
	}
	// 8: no reply for any local address (kernel, ip-sysctl: arp_ignore).
	_ = os.WriteFile(filepath.Join(procSys(sysctls), "net/ipv4/conf", link.Attrs().Name, "arp_ignore"), []byte("8"), 0)
	return nil
}
