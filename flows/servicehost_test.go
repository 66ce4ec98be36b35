package flows

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestRangesOfClusterIPsFarApartDoNotTakeWhatIsBetweenThem: a cluster may have several ranges. A route that held two
// of them took the hosts' whole traffic between them, in the worst case all of it.
func TestRangesOfClusterIPsFarApartDoNotTakeWhatIsBetweenThem(t *testing.T) {
	x := NewServiceIndex([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	step := func(want string, service string, ips ...string) {
		t.Helper()
		var ports []*ServicePort
		if len(ips) > 0 {
			p := &ServicePort{Owner: ServiceOwner("shop", service, "web", "tcp"), Protocol: "tcp", Port: 80}
			for _, a := range ips {
				p.ClusterIPs = append(p.ClusterIPs, netip.MustParseAddr(a))
			}
			ports = append(ports, p)
		}
		x.Set(service, ports)
		if got := fmt.Sprint(x.Services().HostRoutes()); got != want {
			t.Errorf("after %s %v:\ngot  %s\nwant %s", service, ips, got, want)
		}
	}
	step("[192.0.2.0/24]", "told", "192.0.2.7")
	step("[192.0.2.0/24 198.19.0.10/32 2001:db8:43::a/128]", "a", "198.19.0.10", "2001:db8:43::a")
	step("[192.0.2.0/24 198.19.0.8/29 2001:db8:43::8/125]", "b", "198.19.0.15", "2001:db8:43::f")
	step("[192.0.2.0/24 198.19.0.8/29 203.0.113.10/32 2001:db8:43::8/125 2001:db8:cb00::a/128]", "far", "203.0.113.10", "2001:db8:cb00::a")
	step("[192.0.2.0/24 198.19.0.8/29 203.0.113.10/32 2001:db8:43::8/125 2001:db8:cb00::a/128]", "same", "203.0.113.10", "2001:db8:cb00::a")
	step("[192.0.2.0/24 198.19.0.8/29 203.0.113.10/32 2001:db8:43::8/125 2001:db8:cb00::a/128]", "far")
	step("[192.0.2.0/24 198.19.0.8/29 2001:db8:43::8/125]", "same")
	step("[192.0.2.0/24 198.19.0.10/32 2001:db8:43::a/128]", "b")
	step("[192.0.2.0/24]", "a")
}
