package host

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// leavingGroup is the link group (ip-link(8)) of host ends that are about to be deleted together. Any
// number would do that nobody else uses; that nobody does is checked each time.
const leavingGroup = 0x7477_6c76

// DeleteVeths removes the pairs whose host ends have these names, and with them the interfaces of the
// pods. A missing one is no error. Many at once take about as long as one: the kernel waits until no
// processor can be looking at them any more, some 15 ms, once for each request.
func DeleteVeths(hosts ...string) error {
	h, err := routeSocket()
	if err != nil {
		return err
	}
	defer h.Close()
	if len(hosts) > 1 {
		if err := deleteTogether(h, hosts); err == nil {
			return nil
		}
	}
	var errs []error
	for _, host := range hosts {
		errs = append(errs, deleteLink(h, host))
	}
	return errors.Join(errs...)
}

// deleteTogether marks the links by a group and deletes the group in one request.
func deleteTogether(h *netlink.Handle, names []string) error {
	marked := 0
	for _, name := range names {
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetGroup(link, leavingGroup)
		}
		switch {
		case err == nil:
			marked++
		case !missing(err):
			return fmt.Errorf("mark link %s: %w", name, err)
		}
	}
	if marked == 0 {
		return nil
	}
	links, err := listLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); a.Group == leavingGroup && !slices.Contains(names, a.Name) {
			return fmt.Errorf("link %s is in group %d, too", a.Name, leavingGroup)
		}
	}
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(leavingGroup)))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("delete link group %d: %w", leavingGroup, err)
	}
	return nil
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !missing(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
