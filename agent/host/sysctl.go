package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (g Gateway) sysctl(name ...string) string {
	return filepath.Join(append([]string{procSys(g.ProcSys), "net"}, name...)...)
}

func procSys(path string) string {
	if path == "" {
		return "/proc/sys"
	}
	return path
}

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// set writes a sysctl unless it has that value, and notes it.
func (r *repair) set(path, value, why string) error {
	name := strings.ReplaceAll(strings.TrimPrefix(path, filepath.Dir(r.sysctl())+"/"), "/", ".")
	has, err := readSysctl(path)
	if err != nil {
		return fmt.Errorf("read sysctl %s: %w", name, err)
	}
	if has == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl %s is %s but must be %s (%s); set it on the node, or let the agent write %s: %w",
			name, has, value, why, path, err)
	}
	r.done = append(r.done, fmt.Sprintf("sysctl %s was %s, now %s", name, has, value))
	return nil
}

// sysctls switches forwarding on for the families of the gateway, and a strict reverse path filter on
// the link to loose: replies of another path than the request's are ordinary here.
func (r *repair) sysctls() error {
	const why = "the host routes packets of pods"
	var failed []error
	if ofFamily(r.Addresses, netip.IPv4Unspecified()).IsValid() {
		failed = append(failed, r.set(r.sysctl("ipv4", "ip_forward"), "1", why), r.reversePathFilter())
	}
	if ofFamily(r.Addresses, netip.IPv6Unspecified()).IsValid() {
		failed = append(failed, r.keepRouterAdvertisements(), r.set(r.sysctl("ipv6", "conf", "all", "forwarding"), "1", why))
	}
	return errors.Join(failed...)
}

// reversePathFilter: the kernel takes the larger of conf/all and conf/LINK (ip-sysctl: 1 strict, 2
// loose, RFC 3704).
func (r *repair) reversePathFilter() error {
	own := r.sysctl("ipv4", "conf", r.Link, "rp_filter")
	all, err := readSysctl(r.sysctl("ipv4", "conf", "all", "rp_filter"))
	if err != nil {
		return fmt.Errorf("read the reverse path filter: %w", err)
	}
	has, err := readSysctl(own)
	if err != nil {
		return fmt.Errorf("read the reverse path filter of %s: %w", r.Link, err)
	}
	if max(all, has) != "1" {
		return nil
	}
	return r.set(own, "2", "a strict reverse path filter drops packets that come back another way")
}

// keepRouterAdvertisements lets links that learned a route from a router advertisement go on doing so:
// with forwarding on, accept_ra=1 means no, and the node would lose its default route when the
// present one expires (ip-sysctl, accept_ra).
func (r *repair) keepRouterAdvertisements() error {
	if on, err := readSysctl(r.sysctl("ipv6", "conf", "all", "forwarding")); err != nil || on == "1" {
		return nil // nothing is about to change; a failed read is told by the caller's write
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return r.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes learned from router advertisements: %w", err)
	}
	var failed []error
	for _, n := range routes {
		path := r.sysctl("ipv6", "conf", linkName(r.h, n.LinkIndex), "accept_ra")
		if has, err := readSysctl(path); err == nil && has == "1" {
			failed = append(failed, r.set(path, "2", "with forwarding on, 1 would end the default route learned there"))
		}
	}
	return errors.Join(failed...)
}
