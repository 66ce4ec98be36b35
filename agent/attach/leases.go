package attach

import (
	"maps"
	"net/netip"
	"time"

	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/ovs"
)

// lease is an attachment that this process is making, has made or has taken over. It holds the addresses
// and the OpenFlow number before the port row does, and until the veth is gone: an address is never free
// while an interface may still carry it.
type lease struct {
	// port is the row as it is to be.
	port ovs.Port
	// started is true once the row may be in OVSDB.
	started bool
	// leaving is true once a removal has begun, until it has succeeded: no flows any more.
	leaving bool
}

// Range is the use of one podCIDR.
type Range struct {
	CIDR     netip.Prefix `json:"cidr"`
	Capacity int          `json:"capacity"`
	Used     int          `json:"used"`
	Cooling  int          `json:"cooling"`
	Free     int          `json:"free"`
}

// Usage is the use of all podCIDRs of the node.
type Usage struct {
	Ranges []Range `json:"ranges"`
}

// Usage counts addresses that pods can have; of each range, used + cooling + free = capacity. An address
// of a running ADD counts as used.
func (m *Manager) Usage() Usage {
	cidrs := m.cfg.PodCIDRs()
	m.mu.Lock()
	defer m.mu.Unlock()
	used, _ := m.taken()
	m.warm()
	var u Usage
	for _, c := range cidrs {
		u.Ranges = append(u.Ranges, m.use(c, used))
	}
	return u
}

// use counts one range. m.mu is held, and what has rested long enough is forgotten.
func (m *Manager) use(c netip.Prefix, used map[netip.Addr]bool) Range {
	r := Range{CIDR: c, Capacity: capacity(c)}
	for a := range used {
		if assignable(c, a) {
			r.Used++
		}
	}
	for a := range m.resting {
		if assignable(c, a) && !used[a] {
			r.Cooling++
		}
	}
	r.Free = r.Capacity - r.Used - r.Cooling
	return r
}

// taken are the addresses and OpenFlow numbers that port rows, readable in full or not, and leases hold.
// m.mu is held, so that a lease which is given up meanwhile is in the rows, or was seen.
func (m *Manager) taken() (addresses map[netip.Addr]bool, ofports map[int]bool) {
	addresses, ofports = map[netip.Addr]bool{}, map[int]bool{}
	take := func(p ovs.Port) {
		for _, a := range addressesOf(p) {
			addresses[a] = true
		}
		ofports[p.OFPort], ofports[p.OFPortRequest] = true, true
	}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		take(p)
	}
	for _, l := range m.held {
		take(l.port)
	}
	return addresses, ofports
}

// warm forgets addresses that have rested long enough. m.mu is held.
func (m *Manager) warm() {
	now := m.cfg.Clock()
	maps.DeleteFunc(m.resting, func(_ netip.Addr, until time.Time) bool { return !now.Before(until) })
}

// lease gives r an address of each podCIDR with its gateway, a MAC and an OpenFlow number, and holds them
// until forget.
func (m *Manager) lease(r record) (record, error) {
	cidrs := m.cfg.PodCIDRs()
	if len(cidrs) == 0 {
		return record{}, m.noPodCIDR(cni.ErrTryAgain)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	used, ofports := m.taken()
	m.warm()
	taken := maps.Clone(used)
	for a := range m.resting {
		taken[a] = true
	}
	for _, c := range cidrs {
		a, ok := nextFree(c, m.last[c], taken)
		if !ok {
			r := m.use(c, used)
			if r.Cooling > 0 {
				return record{}, m.exhausted(cni.ErrTryAgain, r)
			}
			return record{}, m.exhausted(cni.ErrNoFreeAddress, r)
		}
		r.Addresses, r.gateways = append(r.Addresses, a), append(r.gateways, gatewayOf(c))
	}
	ofport := nextPort(m.lastPort, ofports)
	if ofport == 0 {
		return record{}, cni.Errorf(cni.ErrPort, "bridge %s has no free OpenFlow port number up to %d", m.cfg.Bridge, maxPort).
			Advise("delete ports that nobody needs, see ovs-vsctl list-ports %s", m.cfg.Bridge)
	}
	for i, c := range cidrs {
		m.last[c] = r.Addresses[i]
	}
	r.MAC, r.OFPort, m.lastPort = macOf(r.Addresses), uint32(ofport), ofport
	m.held[r.Port] = lease{port: r.row()}
	return r, nil
}

func (m *Manager) noPodCIDR(code uint) error {
	return cni.Errorf(code, "node %s has no usable podCIDR", m.cfg.NodeName).
		Advise("run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set spec.podCIDR and spec.podCIDRs of the Node")
}

// exhausted is the error for a range without a free address.
func (m *Manager) exhausted(code uint, r Range) error {
	return cni.Errorf(code, "podCIDR %s of node %s has no free address: of %d, %d are in use and %d rest for up to %s after their pods",
		r.CIDR, m.cfg.NodeName, r.Capacity, r.Used, r.Cooling, m.cfg.Cooldown).
		Advise("delete pods of this node, or give nodes larger ranges (kube-controller-manager --node-cidr-mask-size)")
}

// start notes that the row of a lease may be in OVSDB from now on.
func (m *Manager) start(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.held[name]
	l.started = true
	m.held[name] = l
}

// find is the lease of a port, made up from the row when this process has none; known is false when there
// is no row either.
func (m *Manager) find(name string) (l lease, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.findLocked(name)
}

func (m *Manager) findLocked(name string) (l lease, known bool) {
	if l, known = m.held[name]; known {
		return l, true
	}
	p, there := m.port(name)
	return lease{port: p, started: true}, there && isOurs(p)
}

// leave marks an attachment as leaving, see find.
func (m *Manager) leave(name string) (l lease, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, known = m.findLocked(name); known {
		l.leaving = true
		m.held[name] = l
	}
	return l, known
}

// forget ends a lease. Its addresses rest if they can have been seen by anybody.
func (m *Manager) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.held[name]
	delete(m.held, name)
	if l.started {
		until := m.cfg.Clock().Add(m.cfg.Cooldown)
		for _, a := range addressesOf(l.port) {
			m.resting[a] = until
		}
	}
}

// maxPort is the last OpenFlow number for pods; the tunnel and the gateway have those above.
const maxPort = 32767

// nextPort is the first free OpenFlow number after last, 0 if there is none.
func nextPort(last int, taken map[int]bool) int {
	for i := range maxPort {
		if p := (last+i)%maxPort + 1; !taken[p] {
			return p
		}
	}
	return 0
}
