package attach

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Ports is the part of ovs.DB that is used here.
type Ports interface {
	Ports(bridge string) []ovs.Port
	StartPort(ctx context.Context, bridge string, p ovs.Port) error
	WaitPort(ctx context.Context, bridge, name string) (ovs.Port, error)
	DeletePorts(ctx context.Context, bridge string, names ...string) error
	Alive() error
}

// Links is the part of package host that is used here.
type Links interface {
	AddVeth(ctx context.Context, v host.Veth) error
	DeleteVeth(host string) error
	CheckVeth(v host.Veth) []string
	Veths(prefix string) ([]string, error)
}

// Flows is the agent's loop: Apply returns once the bridge holds what the World now compiles to for
// these owners.
type Flows interface {
	Apply(ctx context.Context, owners ...flows.Owner) error
}

// Config is what a Manager works with. All functions are called anew for each command.
type Config struct {
	NodeName string
	Bridge   string
	Ports    Ports
	Links    Links
	Flows    Flows
	// PodCIDRs are those of this node, at most one of each family.
	PodCIDRs func() []netip.Prefix
	// MTU of new interfaces in bytes.
	MTU func() int
	// NoOffload is true on the userspace datapath, see host.Veth.
	NoOffload bool
	RouterMAC net.HardwareAddr
	// Ready is nil when pods can be attached, or says why not.
	Ready func() error
	// Cooldown is how long an address rests after its pod has gone.
	Cooldown time.Duration
	Clock    func() time.Time
	Log      logrus.FieldLogger
}

// Manager carries out CNI commands. It implements cni.Handler.
type Manager struct {
	cfg Config

	mu       sync.Mutex
	busy     map[string]chan struct{}    // port name: an ADD or DEL is under way; closed at its end
	leaving  map[string]bool             // port name: its flows are being, or have been, removed
	reserved map[netip.Addr]bool         // given to an ADD whose row is not in OVSDB yet
	resting  map[netip.Addr]time.Time    // free again from then on
	last     map[netip.Prefix]netip.Addr // where the search for a free address goes on
	ofports  map[int]bool                // OpenFlow numbers of ADDs whose row is not in OVSDB yet
	lastPort int
}

var _ cni.Handler = (*Manager)(nil)

// New makes a Manager. It does nothing until it is asked.
func New(c Config) *Manager {
	return &Manager{
		cfg: c, busy: map[string]chan struct{}{}, leaving: map[string]bool{}, reserved: map[netip.Addr]bool{},
		resting: map[netip.Addr]time.Time{}, last: map[netip.Prefix]netip.Addr{}, ofports: map[int]bool{},
	}
}

// Attachments are all interfaces of pods on this node by owner, without those that are leaving.
func (m *Manager) Attachments() map[flows.Owner][]flows.Attachment {
	records, _ := m.records()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[flows.Owner][]flows.Attachment{}
	for _, r := range records {
		if !m.leaving[r.Port] {
			out[r.Owner()] = append(out[r.Owner()], r.Attachment)
		}
	}
	return out
}

// Problems says which ports of the bridge could not be used, and why.
func (m *Manager) Problems() []string {
	_, errs := m.records()
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if p.Type == "" && !isOurs(p) {
			out = append(out, fmt.Sprintf("port %s of bridge %s has no ids of Twill and gets no flows; if nobody needs it: ovs-vsctl del-port %s %s", p.Name, m.cfg.Bridge, m.cfg.Bridge, p.Name))
		}
	}
	return out
}

// records reads all port rows of ours.
func (m *Manager) records() (good []record, bad []error) {
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if !isOurs(p) {
			continue
		}
		r, err := readRow(p)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		good = append(good, r)
	}
	return good, bad
}

// port finds the row of an attachment by its link name.
func (m *Manager) port(name string) (ovs.Port, bool) {
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if p.Name == name && isOurs(p) {
			return p, true
		}
	}
	return ovs.Port{}, false
}

// begin waits until no other command is under way for this port, then holds it until the returned
// function is called.
func (m *Manager) begin(ctx context.Context, port string) (end func(), err error) {
	for {
		m.mu.Lock()
		other, busy := m.busy[port]
		if !busy {
			mine := make(chan struct{})
			m.busy[port] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, port)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, cni.Errorf(cni.ErrTryAgain, "another command for the same interface (port %s) is under way: %w", port, ctx.Err())
		}
	}
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

// Usage counts addresses. An address of a running ADD counts as used.
func (m *Manager) Usage() Usage {
	used := m.leased()
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(used, m.reserved)
	m.warm()
	var u Usage
	for _, c := range m.cfg.PodCIDRs() {
		r := Range{CIDR: c, Capacity: capacity(c)}
		for a := range used {
			if c.Contains(a) {
				r.Used++
			}
		}
		for a := range m.resting {
			if c.Contains(a) && !used[a] {
				r.Cooling++
			}
		}
		r.Free = r.Capacity - r.Used - r.Cooling
		u.Ranges = append(u.Ranges, r)
	}
	return u
}

// leased are the addresses that port rows hold, readable in full or not.
func (m *Manager) leased() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		for _, a := range addressesOf(p) {
			out[a] = true
		}
	}
	return out
}

// warm forgets addresses that have rested long enough. m.mu is held.
func (m *Manager) warm() {
	now := m.cfg.Clock()
	maps.DeleteFunc(m.resting, func(_ netip.Addr, until time.Time) bool { return !now.Before(until) })
}

// lease picks one address of each podCIDR and an OpenFlow number, and reserves them until release.
func (m *Manager) lease() (addresses []netip.Addr, ofport int, err error) {
	cidrs := m.cfg.PodCIDRs()
	if len(cidrs) == 0 {
		return nil, 0, cni.Errorf(cni.ErrTryAgain, "node %s has no usable podCIDR: run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set spec.podCIDR and spec.podCIDRs of the Node", m.cfg.NodeName)
	}
	taken := m.leased()
	ports := map[int]bool{}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		ports[p.OFPort], ports[p.OFPortRequest] = true, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(taken, m.reserved)
	maps.Copy(ports, m.ofports)
	m.warm()
	used := len(taken)
	for a := range m.resting {
		taken[a] = true
	}
	for _, c := range cidrs {
		a, ok := nextFree(c, m.last[c], taken)
		if !ok {
			code := cni.ErrNoFreeAddress
			if len(taken) > used {
				code = cni.ErrTryAgain
			}
			return nil, 0, cni.Errorf(code, "podCIDR %s of node %s has no free address: %d in use, %d resting for %s; delete pods, or give nodes larger ranges (kube-controller-manager --node-cidr-mask-size)",
				c, m.cfg.NodeName, used, len(taken)-used, m.cfg.Cooldown)
		}
		addresses = append(addresses, a)
	}
	if ofport = nextPort(m.lastPort, ports); ofport == 0 {
		return nil, 0, cni.Errorf(cni.ErrPort, "bridge %s has no free OpenFlow port number", m.cfg.Bridge)
	}
	for i, a := range addresses {
		m.reserved[a] = true
		m.last[cidrs[i]] = a
	}
	m.ofports[ofport], m.lastPort = true, ofport
	return addresses, ofport, nil
}

// release ends a reservation; the addresses are free unless a port row holds them by now.
func (m *Manager) release(addresses []netip.Addr, ofport int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addresses {
		delete(m.reserved, a)
	}
	delete(m.ofports, ofport)
}

// rest keeps addresses from being used again at once.
func (m *Manager) rest(addresses []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	until := m.cfg.Clock().Add(m.cfg.Cooldown)
	for _, a := range addresses {
		m.resting[a] = until
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

// gateways are the routers of a pod with these addresses: the first address of each address's podCIDR.
func (m *Manager) gateways(addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addresses {
		i := slices.IndexFunc(m.cfg.PodCIDRs(), func(c netip.Prefix) bool { return c.Contains(a) })
		if i >= 0 {
			out = append(out, flows.Gateway(m.cfg.PodCIDRs()[i]))
		}
	}
	return out
}

// tryBegin is begin without waiting; free is false when a command is under way for the port.
func (m *Manager) tryBegin(port string) (end func(), free bool) {
	m.mu.Lock()
	_, busy := m.busy[port]
	m.mu.Unlock()
	if busy {
		return nil, false
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	end, err := m.begin(done, port)
	return end, err == nil
}

// undoTimeout bounds the cleaning up after an ADD that failed.
const undoTimeout = 10 * time.Second
