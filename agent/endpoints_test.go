package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twill-net/twill/flows"
)

func TestEndpointsThatAreNoPodsAreNamedByOneNode(t *testing.T) {
	node := func(name, address, cidr string) flows.Node {
		return flows.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
	}
	alpha, beta := node("alpha", "198.51.100.1", "198.18.1.0/24"), node("beta", "198.51.100.2", "198.18.2.0/24")
	at := func(text string) flows.Endpoint {
		return flows.Endpoint{Address: netip.MustParseAddr(text), Port: 6443, Ready: true}
	}
	p := &flows.ServicePort{Owner: "service/default/kubernetes:https"}
	for _, c := range []struct{ endpoint, alpha, beta string }{
		{"198.18.2.9", "", ""},
		{"198.51.100.1", "198.51.100.1:6443 is the node alpha itself", ""},
		{"198.51.100.2", "", "198.51.100.2:6443 is the node beta itself"},
		{"203.0.113.9", "203.0.113.9:6443 is in no podCIDR and no node has it", ""},
	} {
		p.Endpoints = []flows.Endpoint{at(c.endpoint)}
		for who, w := range map[string]*flows.World{
			c.alpha: {Node: alpha, Peers: map[string]flows.Node{"beta": beta}},
			c.beta:  {Node: beta, Peers: map[string]flows.Node{"alpha": alpha}},
		} {
			if c.alpha == c.beta {
				who = ""
			}
			if got := oddEndpoints(w, p); (who == "") != (got == "") || !strings.Contains(got, who) {
				t.Errorf("%s, on %s: %q, want %q", c.endpoint, w.Node.Name, got, who)
			}
		}
	}
	p.Endpoints = []flows.Endpoint{at("203.0.113.1"), at("203.0.113.2"), at("203.0.113.3"), at("203.0.113.4"), at("203.0.113.5")}
	if got := oddEndpoints(&flows.World{Node: alpha}, p); !strings.HasSuffix(got, "; and 2 more") {
		t.Errorf("five of them: %q", got)
	}
	if got := serviceKey("service/shop/web:dns/udp").String(); got != "Service/shop/web" {
		t.Errorf("the Service is %s", got)
	}
}
