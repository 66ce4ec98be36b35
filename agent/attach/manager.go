package attach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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
	SetPortIDs(ctx context.Context, bridge, name string, ids map[string]string) error
	Alive() error
}

// Links is the part of package host that is used here.
type Links interface {
	AddVeth(ctx context.Context, v host.Veth, there func()) error
	DeleteVeth(host string) error
	CheckVeth(v host.Veth) []string
	Veths(prefix string) ([]string, error)
	Seal(hosts ...string) error
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
	// Known returns once the labels of the pod with that UID are known, so that its policies are part of what
	// Flows.Apply brings about; the error says why not. nil: nothing has to be known.
	Known func(ctx context.Context, namespace, pod, uid string) error
	// Cooldown is how long an address rests after its pod has gone.
	Cooldown time.Duration
	Clock    func() time.Time
	Log      logrus.FieldLogger
}

// Manager carries out CNI commands. It implements cni.Handler.
type Manager struct {
	cfg Config

	mu       sync.Mutex
	busy     map[string]chan struct{}    // port name: a command is under way; closed at its end
	sweeps   map[*sweeping]bool          // under way
	held     map[string]lease            // by port name
	resting  map[netip.Addr]time.Time    // free again from then on
	last     map[netip.Prefix]netip.Addr // where the search for a free address goes on
	lastPort int                         // and that for an OpenFlow number
}

var _ cni.Handler = (*Manager)(nil)

// New makes a Manager. It does nothing until it is asked.
func New(c Config) *Manager {
	return &Manager{
		cfg: c, busy: map[string]chan struct{}{}, sweeps: map[*sweeping]bool{}, held: map[string]lease{},
		resting: map[netip.Addr]time.Time{}, last: map[netip.Prefix]netip.Addr{},
	}
}

// Attachments are all interfaces of pods on this node by owner, without those that are leaving.
func (m *Manager) Attachments() map[flows.Owner][]flows.Attachment {
	leaving := map[string]bool{}
	m.mu.Lock()
	for name, l := range m.held {
		leaving[name] = l.leaving
	}
	m.mu.Unlock()
	// The rows are read after that: a port that is no longer leaving by now has no row.
	out := map[flows.Owner][]flows.Attachment{}
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if !isOurs(p) || leaving[p.Name] {
			continue
		}
		if r, err := readRow(p); err == nil {
			out[r.Owner()] = append(out[r.Owner()], r.Attachment)
		}
	}
	return out
}

// LargestMTU is that of the interfaces of pods on this node, in bytes, 0 without any: each keeps the MTU that it was made with.
func (m *Manager) LargestMTU() int {
	largest := 0
	for _, interfaces := range m.Attachments() {
		for _, a := range interfaces {
			largest = max(largest, a.MTU)
		}
	}
	return largest
}

// Problems says which ports are not as they should be, and why: most of them get no flows.
func (m *Manager) Problems() []string {
	var out []string
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if isOurs(p) {
			if _, err := readRow(p); err != nil {
				out = append(out, err.Error())
			}
		} else if p.Type == "" {
			out = append(out, fmt.Sprintf("port %s of bridge %s has no ids of Twill and gets no flows; if nobody needs it: ovs-vsctl del-port %s %s",
				p.Name, m.cfg.Bridge, m.cfg.Bridge, p.Name))
		}
	}
	for _, name := range m.lost() {
		out = append(out, fmt.Sprintf("port %s was deleted or changed by somebody else and is not put back yet", name))
	}
	return out
}

// port finds a row by its name, which is the link name of an attachment.
func (m *Manager) port(name string) (ovs.Port, bool) {
	for _, p := range m.cfg.Ports.Ports(m.cfg.Bridge) {
		if p.Name == name {
			return p, true
		}
	}
	return ovs.Port{}, false
}

// begin waits until no other command is under way for this port, then holds it until end is called.
func (m *Manager) begin(ctx context.Context, port string) (end func(), err error) {
	m.mu.Lock()
	for s := range m.sweeps {
		s.spared[port] = true
	}
	m.mu.Unlock()
	for {
		end, other := m.tryBegin(port)
		if other == nil {
			return end, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, cni.Errorf(cni.ErrTryAgain, "another command for the same interface (port %s) is under way: %w", port, ctx.Err())
		}
	}
}

// tryBegin is begin without waiting. When a command is under way for the port, end is nil and other is
// closed at its end.
func (m *Manager) tryBegin(port string) (end func(), other <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other, busy := m.busy[port]; busy {
		return nil, other
	}
	mine := make(chan struct{})
	m.busy[port] = mine
	return func() {
		m.mu.Lock()
		delete(m.busy, port)
		m.mu.Unlock()
		close(mine)
	}, nil
}
