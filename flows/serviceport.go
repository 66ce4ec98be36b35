package flows

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Priorities of the flows of Service ports, in the tables service and pick.
const (
	prioFromPod   = 120 // external traffic of pods of this node: to all endpoints whatever the policy
	prioFromNode  = 110 // and of the node's own processes
	prioFrontend  = 100
	prioOutOfWhat = 80 // clients outside of loadBalancerSourceRanges
)

// servicePort is the compilation of one port in one family.
type servicePort struct {
	builder
	w              *World
	port           *ServicePort
	v4             bool
	cluster, local []Endpoint
	groups         map[groupKey]*Group
	there          bool // some endpoint is somewhere
}

// servicePortFlows lead each address of one port of a Service to its endpoints.
func servicePortFlows(w *World, port *ServicePort) []Flow {
	var out []Flow
	for _, v4 := range []bool{true, false} {
		p := servicePort{builder: builder{owner: port.Owner}, w: w, port: port, v4: v4, groups: map[groupKey]*Group{}}
		p.cluster, p.local = port.Choose(w.Node, v4)
		p.there = len(p.cluster) > 0
		for _, f := range p.frontends() {
			p.frontend(f)
		}
		p.stickyEndpoints()
		out = append(out, p.flows...)
	}
	return out
}

// frontends are those of the port, and beside each that is an address of this host itself its stand-in.
func (p *servicePort) frontends() []frontend {
	out := p.port.frontends(p.v4)
	for _, f := range out {
		if s, own := p.w.StandIn(f.address); own && f.external {
			f.address = s
			out = append(out, f)
		}
	}
	return out
}

// clients is a part of the clients of a frontend: those of a source kind (a bit of reg0) or a range.
type clients struct {
	priority uint16
	kind     string
	from     netip.Prefix
	local    bool // which endpoints they get
}

// frontend adds the flows of one address.
func (p *servicePort) frontend(f frontend) {
	local := f.external && p.port.ExternalLocal || !f.external && p.port.InternalLocal
	who := []clients{{priority: prioFrontend, local: local}}
	if f.external && local {
		// "Local" is about what comes from outside of the cluster: kube-proxy lets pods and processes of the
		// node reach an external address by any endpoint.
		who = append(who, clients{priority: prioFromPod, kind: isFromPod})
		for _, a := range hostAddresses(p.w.Node) {
			if a.Is4() == p.v4 {
				who = append(who, clients{priority: prioFromNode, from: host(a)})
			}
		}
	}
	if f.ranged {
		who = p.within(who)
		p.drop(Service, prioOutOfWhat, p.to(f, clients{}), DropSourceRange)
	}
	for _, c := range who {
		p.serve(f, c)
	}
}

// within narrows clients to the loadBalancerSourceRanges.
func (p *servicePort) within(who []clients) (out []clients) {
	for _, c := range who {
		for _, r := range p.port.SourceRanges {
			switch {
			case r.Addr().Is4() != p.v4:
			case !c.from.IsValid():
				narrow := c
				narrow.from = r
				out = append(out, narrow)
			case r.Contains(c.from.Addr()):
				out = append(out, c)
			}
		}
	}
	return out
}

// to matches what some clients send to an address.
func (p *servicePort) to(f frontend, c clients) Match {
	m := match(p.protocol(), ipDst(host(f.address))[1:], field("tp_dst", decimalPort(f.port)))
	if c.from.IsValid() && c.from.Bits() > 0 {
		m = match(ipSrc(c.from)[1:], m)
	}
	if c.kind != "" {
		m = match(field("reg0", c.kind), m)
	}
	return m
}

func (p *servicePort) protocol() Match {
	if p.v4 {
		return field(p.port.Protocol, "")
	}
	return field(p.port.Protocol+"6", "")
}

// serve sends new connections to the endpoints that these clients get.
func (p *servicePort) serve(f frontend, c clients) {
	key, list := groupKey{p.v4, false}, p.cluster
	if c.local {
		key.local, list = true, p.local
	}
	m := match(field("ct_state", "+new+trk"), p.to(f, c))
	switch {
	case len(list) == 0 && p.there:
		p.drop(Service, c.priority, m, DropNoEndpoint)
	case len(list) == 0:
		p.nobody(c, p.to(f, clients{from: c.from}), c.priority)
	case p.port.Affinity == 0:
		p.through(Service, c.priority, m, p.group(key, list), set(serviceBits, "reg0"))
	default:
		p.add(Service, c.priority, m, set(serviceBits, "reg0"), resubmit(Sticky), gotoTable(Pick))
		again := p.to(f, c)
		p.through(Pick, c.priority, again, p.group(key, list))
		for _, e := range list {
			known := p.to(f, clients{from: c.from})
			bits := stickyBits
			if c.kind == isFromPod {
				bits = stickyFromPod
			}
			p.add(Pick, c.priority+100, match(field("reg0", bits), p.is(e), known), gotoTable(AtEndpoint))
		}
	}
}

// nobody rejects: there is no endpoint at all.
func (p *servicePort) nobody(c clients, m Match, priority uint16) {
	if c.kind != "" {
		return // the flow for all clients does the same
	}
	p.reject(Service, priority, m)
}

// is matches the endpoint that the registers hold.
func (p *servicePort) is(e Endpoint) Match {
	port := Field{"reg4", fmt.Sprintf("%#x", e.Port)}
	if p.v4 {
		return Match{{"reg3", register(e.Address.AsSlice())}, port}
	}
	b := e.Address.As16()
	return Match{port, {"reg8", register(b[:4])}, {"reg9", register(b[4:8])}, {"reg10", register(b[8:12])}, {"reg11", register(b[12:])}}
}

// register writes 32 bits as Open vSwitch prints them in a match.
func register(b []byte) string {
	if v := binary.BigEndian.Uint32(b); v != 0 {
		return fmt.Sprintf("%#x", v)
	}
	return "0"
}

// translate is what ends the choice of an endpoint.
func (p *servicePort) translate(e Endpoint) Action {
	return commit(ZoneService, Route, "dst="+at(e.Address, e.Port), "")
}

// partSize is how many endpoints one group balances over. A dp_hash has 256 values at most in Open vSwitch
// 3.1, and four for each endpoint is as uneven as it should get, so 64 are the limit; a group of 600 does not fit into an
// OpenFlow message (64 KiB) either. Beyond that, connections are first divided among groups.
const partSize = 48

// partsOf is how many groups n endpoints are divided among, 0 for a single one.
func partsOf(n int) int {
	if n <= 64 {
		return 0
	}
	return (n + partSize - 1) / partSize
}

// group balances over endpoints.
func (p *servicePort) group(key groupKey, list []Endpoint) *Group {
	if g := p.groups[key]; g != nil {
		return g
	}
	ids := p.port.groups[key]
	var g *Group
	switch {
	case p.port.Affinity > 0:
		g = p.divided(ids, list, p.byClient())
	default:
		g = p.divided(ids, list, DPHash)
	}
	p.groups[key] = g
	return g
}

// byClient is the method by which a client always gets the same endpoint, while endpoints stay as they are.
func (p *servicePort) byClient() Method {
	if p.v4 {
		return HashIPv4
	}
	return HashIPv6
}

func (p *servicePort) divided(ids []GroupID, list []Endpoint, m Method) *Group {
	n := partsOf(len(list))
	if n == 0 {
		return p.flat(ids[0], list, m)
	}
	outer := m
	if m == DPHash {
		outer = hashPort(p.port.Protocol)
	}
	// Which part an endpoint belongs to follows from its address: where one comes or goes, one part changes.
	parts := make([][]Endpoint, n)
	for _, e := range list {
		i := hash32("part "+at(e.Address, e.Port)) % uint32(n)
		parts[i] = append(parts[i], e)
	}
	g := &Group{ID: ids[0], Owner: p.port.Owner, Method: outer}
	for i, endpoints := range parts {
		if len(endpoints) == 0 {
			continue
		}
		part := p.flat(ids[1+i], endpoints, m)
		g.Parts = append(g.Parts, part)
		g.Buckets = append(g.Buckets, Bucket{ID: uint32(i + 1), Weight: len(endpoints) * weight,
			Actions: Actions{{"group", fmt.Sprint(part.ID)}}})
	}
	return g
}

// weight is that of an endpoint: all have the same.
const weight = 100

// flat is a group whose buckets are endpoints.
func (p *servicePort) flat(id GroupID, list []Endpoint, m Method) *Group {
	g := &Group{ID: id, Owner: p.port.Owner, Method: m}
	taken := map[uint32]bool{}
	for i, e := range list {
		b := Bucket{ID: hash32(at(e.Address, e.Port)) % (1 << 30), Weight: weight, Actions: p.choice(e)}
		for taken[b.ID] {
			b.ID++
		}
		taken[b.ID] = true
		if rest := finer(len(list)); i == 0 && m == DPHash && rest > 0 {
			// The same endpoint twice, with one weight in all: see finer.
			small := b
			small.ID, small.Weight, b.Weight = b.ID+1<<30, rest, weight-rest
			g.Buckets = append(g.Buckets, b, small)
			continue
		}
		g.Buckets = append(g.Buckets, b)
	}
	slices.SortFunc(g.Buckets, func(a, b Bucket) int { return int(int64(a.ID) - int64(b.ID)) })
	return g
}

// finer is the weight of an extra bucket that makes Open vSwitch (3.1, group_setup_dp_hash_table) divide
// connections finely enough among n endpoints. It hands out 16 hash values, or at least four for each
// bucket, rounded up to a power of two: of 16, three endpoints get 6, 5 and 5, an eighth too many and a
// sixteenth too few. But it also hands out as many as the sum of the weights has of the least weight; a small
// bucket so gets it to 64.
func finer(n int) int {
	const values = 64
	if n >= values/4 || 16%n == 0 {
		return 0
	}
	return (n*weight + values - 1) / values
}

// choice is what a bucket does.
func (p *servicePort) choice(e Endpoint) Actions {
	if p.port.Affinity == 0 {
		return Actions{p.translate(e)}
	}
	port := set(fmt.Sprintf("%#x", e.Port), "reg4")
	if p.v4 {
		return Actions{set("0x"+trimZeros(fmt.Sprintf("%x", e.Address.AsSlice())), "reg3"), port, resubmit(AtEndpoint)}
	}
	return Actions{set("0x"+trimZeros(fmt.Sprintf("%x", e.Address.AsSlice())), "xxreg2"), port, resubmit(AtEndpoint)}
}

func trimZeros(hex string) string {
	for len(hex) > 1 && hex[0] == '0' {
		hex = hex[1:]
	}
	return hex
}

// stickyEndpoints remember which endpoint a client got, and translate. Learning again at each connection
// starts the time-out anew.
func (p *servicePort) stickyEndpoints() {
	if p.port.Affinity == 0 {
		return
	}
	all := SortEndpoints(append(slices.Clone(p.cluster), p.local...))
	for _, f := range p.frontends() {
		for _, e := range all {
			p.add(AtEndpoint, 100, match(p.is(e), p.to(f, clients{})), p.learn(), p.translate(e))
		}
	}
}

// learn writes a flow into the table sticky: from this client to this address and port, the endpoint in the registers.
func (p *servicePort) learn() Action {
	proto := ProtocolNumber(p.port.Protocol)
	eth, src, dst, endpoint := "0x800", "NXM_OF_IP_SRC[]", "NXM_OF_IP_DST[]", "NXM_NX_REG3[]"
	if !p.v4 {
		eth, src, dst, endpoint = "0x86dd", "NXM_NX_IPV6_SRC[]", "NXM_NX_IPV6_DST[]", "NXM_NX_XXREG2[]"
	}
	port := map[string]string{"tcp": "NXM_OF_TCP_DST[]", "udp": "NXM_OF_UDP_DST[]", "sctp": "OXM_OF_SCTP_DST[]"}[p.port.Protocol]
	return Action{"learn", fmt.Sprintf("(table=%d,hard_timeout=%d,priority=100,cookie=%#x,eth_type=%s,nw_proto=%d,%s,%s,%s,"+
		"load:%[9]s->%[9]s,load:NXM_NX_REG4[]->NXM_NX_REG4[],load:0x1->NXM_NX_REG0[14])",
		Sticky, min(p.port.Affinity, maxStickySecond), uint64(stickyCookie), eth, proto, src, dst, port, endpoint)}
}

// ProtocolNumber is that of tcp, udp or sctp in the IP header.
func ProtocolNumber(protocol string) uint8 {
	return map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}[protocol]
}
