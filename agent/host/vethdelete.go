package host

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// leavingGroup is the link group (ip-link(8)) of host ends that are about to be deleted together. Any
// number would do that nobody else uses; that nobody does is checked each time.
const leavingGroup = 0x7477_6c76

// DeleteVeths removes the pairs whose host ends have these names, and with them the interfaces of the
// pods. A missing one is no error. Many at once take about as long as one: the kernel waits until no
// processor can be looking at them any more, some 15 ms, once for each request.
func DeleteVeths(hosts ...string) error {
	d, err := newDeleter()
	if err != nil {
		return err
	}
	defer d.close()
	return d.delete(hosts)
}

// deleter deletes links of the namespace of the thread that made it, wherever it is used.
type deleter struct {
	handle *netlink.Handle
	// socket is for the one request that netlink.Handle does not know.
	socket *nl.NetlinkSocket
}

func newDeleter() (*deleter, error) {
	h, err := routeSocket()
	if err != nil {
		return nil, err
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &deleter{handle: h, socket: s}, nil
}

func (d *deleter) close() {
	d.handle.Close()
	d.socket.Close()
}

func (d *deleter) delete(hosts []string) error {
	if len(hosts) > 1 {
		if err := d.together(hosts); err == nil {
			return nil
		}
	}
	var errs []error
	for _, host := range hosts {
		errs = append(errs, deleteLink(d.handle, host))
	}
	return errors.Join(errs...)
}

// together marks the links by a group and deletes the group in one request.
func (d *deleter) together(names []string) error {
	marked := 0
	for _, name := range names {
		link, err := d.handle.LinkByName(name)
		if err == nil {
			err = d.handle.LinkSetGroup(link, leavingGroup)
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
	links, err := dump(d.handle.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.Group == leavingGroup && !slices.Contains(names, a.Name) {
			return fmt.Errorf("link %s is in group %d, too", a.Name, leavingGroup)
		}
	}
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: d.socket}}
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
