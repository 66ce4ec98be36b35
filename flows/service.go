package flows

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
)

// ServicePort is one port of a Kubernetes Service with all that its objects say. It is plain data.
type ServicePort struct {
	// Owner is service/NAMESPACE/NAME:PORT, with /udp or /sctp behind it where it is not TCP. PORT is the
	// name of the port or, for the only port of a Service, which needs none, its number.
	Owner Owner
	// Protocol is tcp, udp or sctp.
	Protocol string
	// Port is the port at ClusterIPs, load balancer and external addresses; NodePort that at the
	// addresses of nodes, 0 for none.
	Port, NodePort uint16
	// ClusterIPs, LoadBalancer and External are the addresses, of both families. Those of load balancers
	// are only the ones that packets still have when they get here (ipMode VIP, KEP-1860).
	ClusterIPs, LoadBalancer, External []netip.Addr
	// SourceRanges are the only clients that may use the LoadBalancer addresses; empty means all.
	SourceRanges []netip.Prefix
	// InternalLocal and ExternalLocal are the traffic policies Local: endpoints of this node only.
	InternalLocal, ExternalLocal bool
	// Affinity is how long in seconds a client stays with its endpoint after its last connection; 0 is
	// no affinity.
	Affinity int
	// Endpoints are all, of both families, sorted by address and port, each once.
	Endpoints []Endpoint

	// groups are the numbers of its groups, by what they balance over, and behind each those of its parts;
	// assigned by a ServiceIndex.
	groups map[groupKey][]GroupID
}

// groupKey is which of the endpoints of a Service port a group balances over.
type groupKey struct {
	v4, local bool
}

// Services is everything that Kubernetes says about Services. It is a value: a ServiceIndex makes another one for
// each change, which shares with it all that is the same.
type Services struct {
	// Ports are the ports by owner.
	Ports *Shards[*ServicePort]
	// CIDRs are the ranges that ClusterIPs are taken from, where the operator told them.
	CIDRs []netip.Prefix
	// Host is what hosts do for them; the same pointer as long as that is the same.
	Host *ServiceHost `json:"-"`

	// addresses are those at which some port is served, each once, however many Services share it. endpoints are those
	// that packets may be sent to instead; an address that is both is served. Both by their text.
	addresses, endpoints *Shards[netip.Addr]
	// frontends are the owners of the ports that are served at each, sorted, by its text.
	frontends *Shards[[]Owner]
	shortest  int // see ShortestAffinity
}

// Port is the one of an owner, nil if there is none.
func (s *Services) Port(o Owner) *ServicePort {
	p, _ := s.Ports.Get(string(o))
	return p
}

// All are all ports, sorted by owner.
func (s *Services) All() []*ServicePort {
	out := make([]*ServicePort, 0, s.Ports.Len())
	for _, o := range s.Ports.Keys() {
		out = append(out, s.Port(Owner(o)))
	}
	return out
}

// Serves is true for an address at which some port is served.
func (s *Services) Serves(a netip.Addr) bool {
	_, ok := s.addresses.Get(a.String())
	return ok
}

// Leads is true for an address that packets may be sent to instead: that of an endpoint.
func (s *Services) Leads(a netip.Addr) bool {
	_, ok := s.endpoints.Get(a.String())
	return ok
}

// At are the ports that are served at an address and port, sorted by owner: one, unless Services contradict each other.
func (s *Services) At(f Frontend) (out []*ServicePort) {
	owners, _ := s.frontends.Get(f.String())
	for _, o := range owners {
		out = append(out, s.Port(o))
	}
	return out
}

// EndpointsLeft are the addresses that were endpoints before and are none now.
func EndpointsLeft(before, now *Services) (out []netip.Addr) {
	if before == nil {
		return nil
	}
	Differences(before.endpoints, now.endpoints, sameAddress, func(key string) {
		if a, was := before.endpoints.Get(key); was {
			out = append(out, a)
		}
	})
	return out
}

func sameAddress(a, b netip.Addr) bool { return a == b }

// NodePortAddress4 and NodePortAddress6 are what the host translates its own addresses to for a NodePort, so that the bridge
// knows them by one address whichever of them the client used. They are the same on every node, and no
// packet carries them beyond twill0. One is link-local (RFC 3927), the other unique local (RFC 4193).
const (
	NodePortAddress4 = "169.254.77.2"
	NodePortAddress6 = "fd77:7769:6c6c::2"
)

// NodePortAddress is the one of a family.
func NodePortAddress(v4 bool) netip.Addr {
	if v4 {
		return netip.MustParseAddr(NodePortAddress4)
	}
	return netip.MustParseAddr(NodePortAddress6)
}

// ServiceOwner names one port of a Service.
func ServiceOwner(namespace, name, port, protocol string) Owner {
	o := Owner("service/" + namespace + "/" + name + ":" + port)
	if protocol != "tcp" {
		o += Owner("/" + protocol)
	}
	return o
}

// AddressOwner and endpointOwner own what several Services share.
func AddressOwner(a netip.Addr) Owner   { return servedAddressOwner(a.String()) }
func servedAddressOwner(a string) Owner { return Owner("service-address/" + a) }
func endpointOwner(a netip.Addr) Owner  { return Owner("endpoint-address/" + a.String()) }

// groupKeys are the groups that the port may need.
func (p *ServicePort) groupKeys() []groupKey {
	var out []groupKey
	for _, v4 := range []bool{true, false} {
		if len(p.frontends(v4)) == 0 {
			continue
		}
		out = append(out, groupKey{v4, false})
		if p.InternalLocal || p.ExternalLocal {
			out = append(out, groupKey{v4, true})
		}
	}
	return out
}

// Equal is true when both say the same and have the same groups.
func (p *ServicePort) Equal(o *ServicePort) bool {
	return p == o || p != nil && o != nil && p.says(o) && maps.EqualFunc(p.groups, o.groups, slices.Equal)
}

// says is true when both say the same.
func (p *ServicePort) says(o *ServicePort) bool {
	return p.Owner == o.Owner && p.Protocol == o.Protocol && p.Port == o.Port && p.NodePort == o.NodePort &&
		slices.Equal(p.ClusterIPs, o.ClusterIPs) && slices.Equal(p.LoadBalancer, o.LoadBalancer) && slices.Equal(p.External, o.External) &&
		slices.Equal(p.SourceRanges, o.SourceRanges) && p.InternalLocal == o.InternalLocal && p.ExternalLocal == o.ExternalLocal &&
		p.Affinity == o.Affinity && slices.EqualFunc(p.Endpoints, o.Endpoints, Endpoint.Equal)
}

// frontend is one address at which a port is served.
type frontend struct {
	address netip.Addr
	port    uint16
	// external: the policy of external traffic holds; ranged: only SourceRanges may use it.
	external, ranged bool
}

func (p *ServicePort) frontends(v4 bool) []frontend {
	var out []frontend
	add := func(list []netip.Addr, external, ranged bool) {
		for _, a := range list {
			if a.Is4() == v4 {
				out = append(out, frontend{a, p.Port, external, ranged})
			}
		}
	}
	add(p.ClusterIPs, false, false)
	if p.NodePort != 0 && len(out) > 0 {
		out = append(out, frontend{NodePortAddress(v4), p.NodePort, true, false})
	}
	add(p.External, true, false)
	add(p.LoadBalancer, true, len(p.SourceRanges) > 0)
	slices.SortFunc(out, func(a, b frontend) int {
		return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.port, b.port))
	})
	return slices.CompactFunc(out, func(a, b frontend) bool { return a.address == b.address && a.port == b.port })
}

// Masquerade is the address that the bridge gives to clients whose own would not bring answers back to it: the
// network's own address in a podCIDR, which no pod and no host has. It is not valid where the podCIDR has
// but one address.
func Masquerade(podCIDR netip.Prefix) netip.Addr {
	if podCIDR.IsSingleIP() {
		return netip.Addr{}
	}
	return podCIDR.Masked().Addr()
}

// masquerade is that of a node in a family, not valid if it has none.
func (n Node) masquerade(v4 bool) netip.Addr {
	for _, c := range n.PodCIDRs {
		if c.Addr().Is4() == v4 {
			return Masquerade(c)
		}
	}
	return netip.Addr{}
}

// at writes address and port as the nat action takes and shows it.
func at(a netip.Addr, port uint16) string {
	return netip.AddrPortFrom(a, port).String()
}

func decimalPort(port uint16) string { return strconv.Itoa(int(port)) }
