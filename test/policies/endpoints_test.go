package policies

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestAnEndpointThatAPolicySelectsReachesOthersByTheirServices: most pods that policies select are endpoints of a
// Service themselves. What answers them has to be known to connection tracking of policies as what they asked, whether
// they asked a Service or straight, on the same node, on another or beyond the cluster, where an API server may be;
// nobody reaches them.
func TestAnEndpointThatAPolicySelectsReachesOthersByTheirServices(t *testing.T) {
	l := up(t, 2)
	pods := clientNearFar(t, l)
	pods = append(pods, lab.Pod{Namespace: "shop", Name: "beyond", NetNS: labtest.OutsideNS(l), Addresses: []netip.Addr{lab.Outside4(), lab.Outside6()}})
	manifest := ""
	for i, p := range pods {
		serve(t, p, 80)
		manifest += service(p.Name, 11+i, 30081+i, p)
	}
	labtest.Apply(t, l, manifest)
	var asked, refused []probe
	for i, p := range pods {
		for family, vip := range map[string]string{"IPv4": fmt.Sprintf("198.19.0.%d", 11+i), "IPv6": fmt.Sprintf("2001:db8:1919::%d", 11+i)} {
			for _, protocol := range []string{"TCP", "UDP"} {
				if i == 3 && protocol == "UDP" {
					continue // that host answers from another of its addresses
				}
				for _, a := range []netip.Addr{labtest.Of(family, p.Addresses), netip.MustParseAddr(vip)} {
					if i > 0 { // the client asks
						asked = append(asked, probe{pods[0], p, a, protocol, 80})
						continue
					}
					refused = append(refused, probe{pods[1], p, a, protocol, 80}, probe{pods[2], p, a, protocol, 80})
				}
			}
		}
	}
	check := func(when string, probes []probe, want bool) {
		t.Helper()
		for _, p := range compare(probes, func(probe) bool { return want }) {
			t.Errorf("%s: %s: allowed must be %v", when, p, want)
		}
	}
	check("without a policy", append(asked, refused...), true)
	// Who answers has opened nothing: an entry of its own would be one whose translation changes nothing.
	for line := range strings.Lines(labtest.OnNode(t, l, "node-2", "ovs-appctl", "dpctl/dump-conntrack")) {
		if orig, _, _ := strings.Cut(line, "reply="); strings.HasPrefix(line, "tcp") && strings.Contains(orig, "sport=80,") && strings.Contains(line, fmt.Sprint("zone=", flows.ZoneService)) {
			t.Errorf("an answer is tracked as a connection: %s", line)
		}
	}
	defer labtest.Apply(t, l, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
  egress: [{ports: [{port: 80}, {port: 80, protocol: UDP}]}]
`)()
	check("nobody reaches the client", refused, false)
	check("the client reaches everybody", asked, true)
}
