package host

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpAttempts bounds how often a dump is repeated that the kernel marks as interrupted by a change.
// While pods come and go by the hundred a few in a row are normal; what the last one did bring is then
// used as it is, because whoever audits comes back anyway.
const dumpAttempts = 8

// dump lists kernel objects, once more when a change came in between (NLM_F_DUMP_INTR).
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var (
		all []T
		err error
	)
	for range dumpAttempts {
		all, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	if all != nil {
		return all, nil
	}
	return nil, err
}

// routeSocket opens a route netlink socket in the network namespace of the calling thread.
func routeSocket() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return h, nil
}

// listLinks lists the links of the namespace of the calling thread.
func listLinks() ([]netlink.Link, error) {
	h, err := routeSocket()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// missing tells whether the kernel said that a link is not there.
func missing(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ofFamily is the first of addrs that has the family of a, or the zero Addr.
func ofFamily(addrs []netip.Addr, a netip.Addr) netip.Addr {
	for _, x := range addrs {
		if x.Is4() == a.Is4() {
			return x
		}
	}
	return netip.Addr{}
}

// single is the range that holds only a: /32 or /128.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// everything is 0.0.0.0/0 or ::/0, after the family of a.
func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// fromIPNet reads what netlink gives; nil, its default route of old, becomes the zero Prefix.
func fromIPNet(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(fromIP(n.IP), ones)
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// ordered walks a map by the order of its keys, so that sentences come in the same order every time.
func ordered[K interface {
	Compare(K) int
	comparable
}, V any](m map[K]V) iter.Seq2[K, V] {
	keys := slices.SortedFunc(maps.Keys(m), K.Compare)
	return func(yield func(K, V) bool) {
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
