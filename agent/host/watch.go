package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// watchBuffer is the receive buffer in bytes of each subscription: some thousand messages, a
	// burst of pods many times over.
	watchBuffer = 4 << 20
	// nftablesGroup is NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
	nftablesGroup = 7
)

// Watch calls kick with a short cause when something changed that may concern this package: a link, an
// address, a route, a next hop, our nftables table. What changes all the time and concerns nobody, a
// pod's link that comes or goes or a neighbour that is resolved, causes no kick. Changes that this package
// makes itself do; the Ensure that they lead to finds nothing to do. ofPod tells by its name which link is
// the host end of a pod's; nil means none is.
//
// kick is called from goroutines of Watch, one call at a time, and should be quick. Watch returns nil
// when ctx ends, after the last call of kick, and an error when a subscription breaks; changes in the
// meantime are lost, so a caller that starts it again should look at everything once.
func Watch(ctx context.Context, ofPod func(link string) bool, kick func(cause string)) error {
	w, err := newWatcher(ofPod, kick)
	if err != nil {
		return fmt.Errorf("watch the kernel: %w", err)
	}
	return w.run(ctx)
}

// watcher turns kernel messages into causes.
type watcher struct {
	ofPod func(string) bool
	mu    sync.Mutex // held while kick runs
	kick  func(string)

	routes, filters *nl.NetlinkSocket
	links           map[int]linkState // of the receiver of routes alone
	touched         bool              // our table is part of the present nftables transaction; of the receiver of filters alone
}

// newWatcher subscribes, then reads the links, so that no change is missed in between.
func newWatcher(ofPod func(link string) bool, kick func(cause string)) (*watcher, error) {
	w := &watcher{ofPod: ofPod, kick: kick, links: map[int]linkState{}}
	var err error
	w.routes, err = subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of links, addresses, routes and neighbours: %w", err)
	}
	w.filters, err = subscribe(unix.NETLINK_NETFILTER, nftablesGroup)
	if err != nil {
		w.routes.Close()
		return nil, fmt.Errorf("subscribe to changes of nftables: %w", err)
	}
	links, err := listLinks()
	if err != nil {
		w.close()
		return nil, err
	}
	for _, l := range links {
		w.links[l.Attrs().Index] = stateOf(l)
	}
	return w, nil
}

func (w *watcher) close() {
	w.routes.Close()
	w.filters.Close()
}

// run receives until ctx ends or a socket breaks.
func (w *watcher) run(ctx context.Context) error {
	running, broke := context.WithCancelCause(ctx)
	var both sync.WaitGroup
	both.Go(func() { broke(w.receive(running, w.routes, w.route)) })
	both.Go(func() { broke(w.receive(running, w.filters, w.filter)) })
	<-running.Done()
	w.close() // ends the receivers
	both.Wait()
	if ctx.Err() == nil {
		return fmt.Errorf("watch the kernel: %w", context.Cause(running))
	}
	return nil
}

func subscribe(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return nil, err
	}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("set its receive buffer: %w", err)
	}
	return s, nil
}

// linkState is what of a link matters; messages about anything else, counters and queues, are noise.
type linkState struct {
	name, mac string
	mtu       int
	up, veth  bool
}

func stateOf(l netlink.Link) linkState {
	a := l.Attrs()
	return linkState{a.Name, a.HardwareAddr.String(), a.MTU, a.Flags&net.FlagUp != 0, l.Type() == "veth"}
}

func (w *watcher) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kick(fmt.Sprintf(format, args...))
}

// receive hands messages to handle until the socket is closed, which follows the end of ctx.
func (w *watcher) receive(ctx context.Context, s *nl.NetlinkSocket, handle func(syscall.NetlinkMessage)) error {
	for {
		messages, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			w.say("kernel messages were lost in a burst")
			continue
		case err != nil:
			return err
		}
		for _, m := range messages {
			handle(m)
		}
	}
}

func (w *watcher) route(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.link(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		w.address(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		w.routeOf(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		w.neighbour(m)
	}
}

func (w *watcher) link(m syscall.NetlinkMessage) {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return // of a bridge's port table, not of the link itself
	}
	header := unix.NlMsghdr(m.Header)
	l, err := netlink.LinkDeserialize(&header, m.Data)
	if err != nil {
		return
	}
	index, is := l.Attrs().Index, stateOf(l)
	if w.ofPod != nil && is.veth && w.ofPod(is.name) {
		return
	}
	was, known := w.links[index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(w.links, index)
		w.say("link %s deleted", is.name)
		return
	}
	w.links[index] = is
	comesUp := was
	comesUp.up = is.up
	switch {
	case is == was, is.veth && !known, is.veth && is.up && is == comesUp:
	case !known:
		w.say("link %s added", is.name)
	case was.up && !is.up:
		w.say("link %s went down", is.name)
	default:
		w.say("link %s changed", is.name)
	}
}

// name of a link in a cause.
func (w *watcher) name(index int) string {
	if l, ok := w.links[index]; ok {
		return l.name
	}
	return fmt.Sprintf("number %d", index)
}

func verb(m syscall.NetlinkMessage) string {
	switch m.Header.Type {
	case unix.RTM_DELADDR, unix.RTM_DELROUTE, unix.RTM_DELNEIGH:
		return "deleted"
	}
	return "set"
}

func (w *watcher) address(m syscall.NetlinkMessage) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return
	}
	msg := nl.DeserializeIfAddrmsg(m.Data)
	if msg.Scope == unix.RT_SCOPE_UNIVERSE {
		w.say("address on %s %s", w.name(int(msg.Index)), verb(m))
	}
}

func (w *watcher) routeOf(m syscall.NetlinkMessage) {
	if len(m.Data) < unix.SizeofRtMsg {
		return
	}
	msg := nl.DeserializeRtMsg(m.Data)
	if msg.Table != unix.RT_TABLE_MAIN || msg.Flags&unix.RTM_F_CLONED != 0 {
		return
	}
	to, link := "default", "several links"
	attrs, err := nl.ParseRouteAttr(m.Data[msg.Len():])
	if err != nil {
		return
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			to = fmt.Sprintf("%s/%d", fromIP(a.Value), msg.Dst_len)
		case unix.RTA_OIF:
			link = w.name(int(nl.NativeEndian().Uint32(a.Value)))
		}
	}
	w.say("route to %s by %s %s", to, link, verb(m))
}

// neighbour looks at permanent entries and at the next hops: others come and go.
func (w *watcher) neighbour(m syscall.NetlinkMessage) {
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil || n.Family != netlink.FAMILY_V4 && n.Family != netlink.FAMILY_V6 {
		return
	}
	a := fromIP(n.IP)
	if n.State&netlink.NUD_PERMANENT != 0 || a.IsValid() && a == nextHop(a) {
		w.say("neighbour entry of %s on %s %s", a, w.name(n.LinkIndex), verb(m))
	}
}

// filter looks at messages of nf_tables. Each begins with the name of its table as attribute 1
// (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE … in linux/netfilter/nf_tables.h), except the
// one that ends a transaction: that is when to tell, once.
func (w *watcher) filter(m syscall.NetlinkMessage) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return
	}
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		if w.touched {
			w.say("nftables table inet %s changed", nftTable)
		}
		w.touched = false
		return
	}
	attrs, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
	if err != nil {
		return
	}
	for _, a := range attrs {
		if a.Attr.Type == 1 && m.Data[0] == unix.NFPROTO_INET && nl.BytesToString(a.Value) == nftTable {
			w.touched = true
		}
	}
}
