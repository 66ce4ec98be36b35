package flows

import (
	"net/netip"
	"slices"
)

// ServiceIndex puts Services together and numbers their groups. It is told what each Service says now, and makes of that
// a Services at a cost that follows what has changed, not how many there are. What it makes depends on what it was
// told last of each Service alone, not on the order: a new index that is told the same makes the same.
// It is not safe for concurrent use; what it makes is.
type ServiceIndex struct {
	ports map[Owner]*ServicePort
	// of are the ports of each Service, by its name.
	of      map[string][]*ServicePort
	numbers *numbering
	// changed are the ports that may not be in out as they are.
	changed map[Owner]bool

	// The following count what all ports add up to.
	addresses, endpoints, external tally[netip.Addr]
	nodePorts                      tally[NodePort]
	unserved, externals            tally[Frontend]
	frontends                      tally[servedAt]
	affinities                     tally[int]
	spans                          spans // of ClusterIPs in no range

	out *Services
}

// servedAt is one frontend of a port.
type servedAt struct {
	at    Frontend
	owner Owner
}

// NewServiceIndex returns one that knows no Service; cidrs are the ranges of ClusterIPs, where the operator told them.
func NewServiceIndex(cidrs []netip.Prefix) *ServiceIndex {
	return &ServiceIndex{
		ports: map[Owner]*ServicePort{}, of: map[string][]*ServicePort{}, numbers: newNumbering(maxGroupID), changed: map[Owner]bool{},
		addresses: newTally[netip.Addr](), endpoints: newTally[netip.Addr](), external: newTally[netip.Addr](),
		nodePorts: newTally[NodePort](), unserved: newTally[Frontend](), externals: newTally[Frontend](), frontends: newTally[servedAt](), affinities: newTally[int](),
		spans: spans{of: map[netip.Prefix]*span{}, touched: map[netip.Prefix]bool{}},
		out: &Services{
			Ports: &Shards[*ServicePort]{}, CIDRs: cidrs, addresses: &Shards[netip.Addr]{}, endpoints: &Shards[netip.Addr]{}, frontends: &Shards[[]Owner]{},
			Host: &ServiceHost{nodePorts: &Shards[NodePort]{}, unserved: &Shards[Frontend]{}, external: &Shards[netip.Addr]{}, externals: &Shards[Frontend]{}, around: &Shards[netip.Prefix]{}},
		},
	}
}

// NewServices puts ports together. Two ports of one owner cannot be; the first is used.
func NewServices(ports []*ServicePort, cidrs []netip.Prefix) *Services {
	x := NewServiceIndex(cidrs)
	for _, p := range ports {
		if x.ports[p.Owner] == nil {
			x.Set(string(p.Owner), []*ServicePort{p})
		}
	}
	return x.Services()
}

// Set says what ports a Service has now, none if it is gone. The index takes them over; they must not be changed. Two ports
// of one owner cannot be; the first is used. Different Services have different owners.
func (x *ServiceIndex) Set(service string, ports []*ServicePort) {
	before := x.of[service]
	var now []*ServicePort
	for _, p := range ports {
		if slices.ContainsFunc(now, func(o *ServicePort) bool { return o.Owner == p.Owner }) {
			continue
		}
		if old := x.ports[p.Owner]; old != nil && old.says(p) {
			p = old
		}
		now = append(now, p)
	}
	for _, old := range before {
		if !slices.ContainsFunc(now, func(p *ServicePort) bool { return p.Owner == old.Owner }) {
			x.replace(x.ports[old.Owner], nil)
		}
	}
	for _, p := range now {
		if old := x.ports[p.Owner]; old != p {
			x.replace(old, p)
		}
	}
	if x.of[service] = now; len(now) == 0 {
		delete(x.of, service)
	}
}

// replace takes one port for another; either may be nil.
func (x *ServiceIndex) replace(old, now *ServicePort) {
	var had, has []slot
	if old != nil {
		x.count(old, -1)
		x.changed[old.Owner], had = true, old.slots()
		delete(x.ports, old.Owner)
	}
	if now != nil {
		x.count(now, 1)
		x.changed[now.Owner], has = true, now.slots()
		x.ports[now.Owner] = now
	}
	moved := func(o Owner) { x.changed[o] = true }
	for _, s := range had {
		if !slices.Contains(has, s) {
			x.numbers.remove(s, moved)
		}
	}
	for _, s := range has {
		if !slices.Contains(had, s) {
			x.numbers.add(s, moved)
		}
	}
}

// count adds a port to all that is counted, or takes it away.
func (x *ServiceIndex) count(p *ServicePort, by int) {
	if p.Affinity > 0 {
		x.affinities.add(p.Affinity, by)
	}
	for _, a := range p.ClusterIPs {
		x.addresses.add(a, by)
		if !slices.ContainsFunc(x.out.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
			x.spans.add(a, by)
		}
	}
	for _, list := range [][]netip.Addr{p.LoadBalancer, p.External} {
		for _, a := range list {
			x.addresses.add(a, by)
			x.external.add(a, by)
			x.externals.add(Frontend{p.Protocol, netip.AddrPortFrom(a, p.Port)}, by)
		}
	}
	for _, e := range p.Endpoints {
		x.endpoints.add(e.Address, by)
	}
	for _, v4 := range []bool{true, false} {
		if p.NodePort != 0 {
			x.addresses.add(NodePortAddress(v4), by)
		}
		for _, f := range p.frontends(v4) {
			x.frontends.add(servedAt{Frontend{p.Protocol, netip.AddrPortFrom(f.address, f.port)}, p.Owner}, by)
		}
	}
	for _, n := range p.nodePorts() {
		x.nodePorts.add(n, by)
	}
	for _, u := range p.unserved() {
		x.unserved.add(u, by)
	}
}

// Services are all as they were told last: the same pointer as before if nothing has changed.
func (x *ServiceIndex) Services() *Services {
	if len(x.changed) == 0 {
		return x.out
	}
	before := x.out
	next := &Services{
		Ports: x.publishPorts(), CIDRs: before.CIDRs, Host: x.host(), frontends: x.publishFrontends(),
		endpoints: publish(before.endpoints, netip.Addr.String, func(a netip.Addr) bool { return x.endpoints.has(a) && !x.addresses.has(a) },
			x.endpoints.touched, x.addresses.touched),
		addresses: publish(before.addresses, netip.Addr.String, x.addresses.has, x.addresses.touched),
		shortest:  x.shortestAffinity(),
	}
	clear(x.affinities.touched)
	clear(x.changed)
	clear(x.addresses.touched)
	clear(x.endpoints.touched)
	if next.Ports != before.Ports { // else two changes have undone each other, and all the rest follows from ports
		x.out = next
	}
	return x.out
}

// publishPorts gives each port that has changed the numbers that its groups have now.
func (x *ServiceIndex) publishPorts() *Shards[*ServicePort] {
	put, gone := map[string]*ServicePort{}, []string(nil)
	for o := range x.changed {
		was, known := x.out.Ports.Get(string(o))
		p := x.ports[o]
		if p == nil {
			if known {
				gone = append(gone, string(o))
			}
			continue
		}
		numbered := *p // the one that was told may be part of other Services, with other numbers
		numbered.groups = map[groupKey][]GroupID{}
		for _, s := range p.slots() {
			numbered.groups[s.key] = append(numbered.groups[s.key], x.numbers.of[s])
		}
		if known && was.Equal(&numbered) {
			continue
		}
		put[string(o)] = &numbered
	}
	return x.out.Ports.With(put, gone)
}

func (x *ServiceIndex) publishFrontends() *Shards[[]Owner] {
	put, gone := map[string][]Owner{}, []string(nil)
	for s := range x.frontends.touched {
		key := s.at.String()
		owners, staged := put[key]
		if !staged {
			owners, _ = x.out.frontends.Get(key)
		}
		i, there := slices.BinarySearch(owners, s.owner)
		switch wanted := x.frontends.has(s); {
		case wanted && !there:
			put[key] = slices.Insert(slices.Clone(owners), i, s.owner)
		case !wanted && there:
			put[key] = slices.Delete(slices.Clone(owners), i, i+1)
		}
	}
	clear(x.frontends.touched)
	for key, owners := range put {
		if len(owners) == 0 {
			delete(put, key)
			gone = append(gone, key)
		}
	}
	return x.out.frontends.With(put, gone)
}

// host is the same pointer as before if nothing of it has changed.
func (x *ServiceIndex) host() *ServiceHost {
	was := x.out.Host
	now := ServiceHost{
		nodePorts:  publish(was.nodePorts, NodePort.key, x.nodePorts.has, x.nodePorts.touched),
		unserved:   publish(was.unserved, Frontend.String, x.unserved.has, x.unserved.touched),
		external:   publish(was.external, netip.Addr.String, x.external.has, x.external.touched),
		externals:  publish(was.externals, Frontend.String, x.externals.has, x.externals.touched),
		around:     x.spans.publish(was.around),
		translated: x.addresses.has(NodePortAddress(true)),
	}
	clear(x.nodePorts.touched)
	clear(x.unserved.touched)
	clear(x.external.touched)
	clear(x.externals.touched)
	if now == *was {
		return was
	}
	return &now
}

// tally counts how many ask for each of something.
type tally[K comparable] struct {
	n       map[K]int
	touched map[K]bool // since the last time that it was published
}

func newTally[K comparable]() tally[K] { return tally[K]{map[K]int{}, map[K]bool{}} }

func (t tally[K]) add(k K, by int) {
	if t.n[k] += by; t.n[k] == 0 {
		delete(t.n, k)
	}
	t.touched[k] = true
}

func (t tally[K]) has(k K) bool { return t.n[k] > 0 }

// publish brings s in step with what is wanted of the keys that were touched.
func publish[K comparable](s *Shards[K], text func(K) string, wanted func(K) bool, touched ...map[K]bool) *Shards[K] {
	put, gone := map[string]K{}, []string(nil)
	for _, set := range touched {
		for k := range set {
			key := text(k)
			_, there := s.Get(key)
			switch want := wanted(k); {
			case want && !there:
				put[key] = k
			case !want && there:
				gone = append(gone, key)
			}
		}
	}
	return s.With(put, gone)
}
