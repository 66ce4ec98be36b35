package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

const bridge = "br-twill"

// plainly lets cmp look at addresses.
var plainly = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// node is what outlives an agent: port rows, links, flows, the clock and what Kubernetes says.
type node struct {
	mu    sync.Mutex
	rows  map[string]ovs.Port
	links map[string]host.Veth
	// sealed are the host ends of the last call of Seal.
	sealed []string
	flows  map[flows.Owner][]flows.Attachment
	// number is the OpenFlow number that ovs-vswitchd gives a port; nil means the requested one.
	number func(ovs.Port) int
	down   error // of OVSDB

	cidrs    []netip.Prefix
	now      time.Time
	notReady error
	netns    *os.File
	steps    sync.Mutex // for those who count steps
}

func newNode(t testing.TB, cidrs ...string) *node {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	n := &node{
		rows: map[string]ovs.Port{}, links: map[string]host.Veth{}, flows: map[flows.Owner][]flows.Attachment{},
		now: time.Unix(0, 0), netns: f,
	}
	n.setCIDRs(cidrs...)
	return n
}

func (n *node) setCIDRs(cidrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs = nil
	for _, c := range cidrs {
		n.cidrs = append(n.cidrs, netip.MustParsePrefix(c))
	}
}

func (n *node) do(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) pass(d time.Duration) { n.do(func() { n.now = n.now.Add(d) }) }

func (n *node) Ports(string) []ovs.Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.SortedFunc(maps.Values(n.rows), func(a, b ovs.Port) int { return strings.Compare(a.Name, b.Name) })
}

func (n *node) Alive() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down
}

func (n *node) StartPort(ctx context.Context, _ string, p ovs.Port) error {
	if err := errors.Join(ctx.Err(), n.Alive()); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, ok := n.rows[p.Name]; ok {
		if !maps.Equal(old.ExternalIDs, p.ExternalIDs) {
			return fmt.Errorf("port %s has other external_ids", p.Name)
		}
		return nil
	}
	p.ExternalIDs = maps.Clone(p.ExternalIDs)
	n.rows[p.Name] = p
	return nil
}

func (n *node) WaitPort(ctx context.Context, _, name string) (ovs.Port, error) {
	if err := ctx.Err(); err != nil {
		return ovs.Port{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.rows[name]
	if !ok {
		return p, fmt.Errorf("port %s was removed meanwhile", name)
	}
	p.OFPort = p.OFPortRequest
	if n.number != nil {
		p.OFPort = n.number(p)
	}
	n.rows[name] = p
	if p.OFPort < 0 {
		delete(n.rows, name)
		return ovs.Port{}, fmt.Errorf("ovs-vswitchd cannot use port %s", name)
	}
	return p, nil
}

func (n *node) DeletePorts(ctx context.Context, _ string, names ...string) error {
	if err := errors.Join(ctx.Err(), n.Alive()); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, name := range names {
		delete(n.rows, name)
	}
	return nil
}

func (n *node) SetPortIDs(_ context.Context, _, name string, ids map[string]string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.rows[name]
	if !ok {
		return fmt.Errorf("there is no port %s", name)
	}
	p.ExternalIDs = maps.Clone(p.ExternalIDs)
	maps.Copy(p.ExternalIDs, ids)
	n.rows[name] = p
	return nil
}

func (n *node) AddVeth(ctx context.Context, v host.Veth, there func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.do(func() { n.links[v.Host] = v })
	there()
	return nil
}

func (n *node) DeleteVeth(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, name)
	return nil
}

func (n *node) CheckVeth(want host.Veth) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	v, ok := n.links[want.Host]
	if !ok {
		return []string{"host end " + want.Host + ": link not found"}
	}
	v.NetNS, want.NetNS = "", "" // descriptors differ
	if !cmp.Equal(v, want, plainly) {
		return []string{want.IfName + " is not as it was made"}
	}
	return nil
}

func (n *node) Veths(prefix string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name := range n.links {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (n *node) Seal(hosts ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealed = hosts
	return nil
}

// errKilled is what a dead agent's calls return; they have no effect.
var errKilled = errors.New("this agent is dead")

// agent is one Manager on a node. It can be killed at any step: from then on nothing that it does has an
// effect, so that whatever its code goes on to try, it is as if the process had ended there.
type agent struct {
	*Manager
	node  *node
	ports Ports
	links Links

	mu    sync.Mutex
	steps []string
	dead  bool
	// at, if not nil, is asked before each step and after its effect ("done …"); an error is the step's.
	at func(step string) error
}

// start starts an agent on the node; rows and links are the node's own unless real ones are given.
func (n *node) start() *agent { return n.startWith(n, n) }

func (n *node) startWith(ports Ports, links Links) *agent {
	a := &agent{node: n, ports: ports, links: links}
	log := logrus.New()
	log.SetOutput(io.Discard)
	a.Manager = New(Config{
		NodeName: "node-1", Bridge: bridge, Ports: mortalPorts{a}, Links: mortalLinks{a}, Flows: a,
		PodCIDRs:  func() []netip.Prefix { n.mu.Lock(); defer n.mu.Unlock(); return n.cidrs },
		MTU:       func() int { return 1450 },
		RouterMAC: flows.RouterMAC(),
		Ready:     func() error { n.mu.Lock(); defer n.mu.Unlock(); return n.notReady },
		Cooldown:  time.Minute,
		Clock:     func() time.Time { n.mu.Lock(); defer n.mu.Unlock(); return n.now },
		Log:       log,
	})
	return a
}

func (a *agent) step(format string, args ...any) error {
	step := fmt.Sprintf(format, args...)
	a.mu.Lock()
	dead, at := a.dead, a.at
	if !dead && !strings.HasPrefix(step, "done ") {
		a.steps = append(a.steps, step)
	}
	a.mu.Unlock()
	if dead {
		return errKilled
	}
	if at == nil {
		return nil
	}
	return at(step)
}

// kill ends the agent.
func (a *agent) kill() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead = true
	return errKilled
}

func (a *agent) isDead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dead
}

// onStep sets what happens at the steps to come, and forgets those that were.
func (a *agent) onStep(at func(step string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.steps = at, nil
}

// fail makes one step fail with err, before its effect.
func (a *agent) fail(step string, err error) {
	a.onStep(func(s string) error {
		if s == step {
			return err
		}
		return nil
	})
}

// trail is the steps since onStep; those that run side by side in alphabetical order.
func (a *agent) trail() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range len(a.steps) - 1 {
		if a.steps[i] == "WaitPort" && a.steps[i+1] == "Apply" && (i == 0 || a.steps[i-1] != "Apply") {
			a.steps[i], a.steps[i+1] = "Apply", "WaitPort"
		}
	}
	return strings.Join(a.steps, " ")
}

// Apply is the agent's loop: afterwards the flows are what Attachments ask for.
func (a *agent) Apply(ctx context.Context, _ ...flows.Owner) error {
	if err := errors.Join(a.step("Apply"), ctx.Err()); err != nil {
		return err
	}
	now := a.Attachments()
	a.node.do(func() { a.node.flows = now })
	return a.step("done Apply")
}

type mortalPorts struct{ *agent }

func (a mortalPorts) Ports(bridge string) []ovs.Port { return a.ports.Ports(bridge) }
func (a mortalPorts) Alive() error                   { return a.ports.Alive() }

func (a mortalPorts) StartPort(ctx context.Context, bridge string, p ovs.Port) error {
	if err := a.step("StartPort"); err != nil {
		return err
	}
	if err := a.ports.StartPort(ctx, bridge, p); err != nil {
		return err
	}
	return a.step("done StartPort")
}

func (a mortalPorts) WaitPort(ctx context.Context, bridge, name string) (ovs.Port, error) {
	if err := a.step("WaitPort"); err != nil {
		return ovs.Port{}, err
	}
	p, err := a.ports.WaitPort(ctx, bridge, name)
	if err != nil {
		return p, err
	}
	return p, a.step("done WaitPort")
}

func (a mortalPorts) DeletePorts(ctx context.Context, bridge string, names ...string) error {
	if err := a.step("DeletePorts"); err != nil {
		return err
	}
	if err := a.ports.DeletePorts(ctx, bridge, names...); err != nil {
		return err
	}
	return a.step("done DeletePorts")
}

func (a mortalPorts) SetPortIDs(ctx context.Context, bridge, name string, ids map[string]string) error {
	if err := a.step("SetPortIDs"); err != nil {
		return err
	}
	return a.ports.SetPortIDs(ctx, bridge, name, ids)
}

type mortalLinks struct{ *agent }

func (a mortalLinks) AddVeth(ctx context.Context, v host.Veth, there func()) error {
	if err := a.step("AddVeth"); err != nil {
		return err
	}
	if err := a.links.AddVeth(ctx, v, there); err != nil {
		return err
	}
	return a.step("done AddVeth")
}

func (a mortalLinks) DeleteVeth(name string) error {
	if err := a.step("DeleteVeth"); err != nil {
		return err
	}
	if err := a.links.DeleteVeth(name); err != nil {
		return err
	}
	return a.step("done DeleteVeth")
}

func (a mortalLinks) CheckVeth(v host.Veth) []string        { return a.links.CheckVeth(v) }
func (a mortalLinks) Veths(prefix string) ([]string, error) { return a.links.Veths(prefix) }
func (a mortalLinks) Seal(hosts ...string) error            { return a.links.Seal(hosts...) }

// add attaches and must succeed.
func (a *agent) add(t testing.TB, req *cni.Request) *cni.Result {
	t.Helper()
	r, err := a.Add(t.Context(), req, a.node.netns)
	if err != nil {
		t.Fatalf("ADD of %s/%s: %v", req.ContainerID, req.IfName, err)
	}
	return r
}

func (a *agent) del(t testing.TB, req *cni.Request) {
	t.Helper()
	if err := a.Del(t.Context(), req); err != nil {
		t.Fatalf("DEL of %s/%s: %v", req.ContainerID, req.IfName, err)
	}
}

func (a *agent) adopt(t testing.TB) (adopted, removed int) {
	t.Helper()
	adopted, removed, err := a.Adopt(t.Context())
	if err != nil {
		t.Fatalf("Adopt: %v", err)
	}
	return adopted, removed
}

// pod is the request for the default interface of one pod.
func pod(i int) *cni.Request {
	return &cni.Request{
		ContainerID: fmt.Sprintf("sandbox-%d", i), IfName: "eth0", NetNS: fmt.Sprintf("/run/netns/%d", i),
		Pod:    cni.PodRef{Namespace: "default", Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprintf("uid-%d", i)},
		Config: cni.Config{Name: "twill", CNIVersion: "1.1.0"},
	}
}

func linkOf(req *cni.Request) string { return linkName(req.ContainerID, req.IfName) }

// withPrevious is req as a CHECK with the result of its ADD.
func withPrevious(t testing.TB, req *cni.Request, r *cni.Result) *cni.Request {
	t.Helper()
	previous := types100.Result{CNIVersion: "1.1.0", Interfaces: []*types100.Interface{
		{Name: r.HostInterface, Mtu: r.MTU}, {Name: req.IfName, Mac: r.MAC, Sandbox: req.NetNS},
	}}
	for _, a := range r.Addresses {
		address := types100.IPConfig{Interface: types100.Int(1)}
		address.Address.IP, address.Address.Mask = a.AsSlice(), slices.Repeat([]byte{255}, a.BitLen()/8)
		previous.IPs = append(previous.IPs, &address)
	}
	raw, err := json.Marshal(previous)
	if err != nil {
		t.Fatal(err)
	}
	out := *req
	out.PrevResult = raw
	return &out
}

// dump is all that the node holds, one line for each thing.
func (n *node) dump() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var lines []string
	for name := range n.rows {
		lines = append(lines, "row "+name)
	}
	for name := range n.links {
		lines = append(lines, "link "+name)
	}
	for owner, list := range n.flows {
		for _, at := range list {
			lines = append(lines, fmt.Sprintf("flows %s %s %d", owner, at.Port, at.OFPort))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// of is what a dump says of attached pods.
func attached(reqs ...*cni.Request) string {
	var lines []string
	for i, r := range reqs {
		lines = append(lines, "row "+linkOf(r), "link "+linkOf(r),
			fmt.Sprintf("flows %s %s %d", flows.PodOwner(r.Pod.Namespace, r.Pod.Name, r.IfName), linkOf(r), i+1))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func expect(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, plainly); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// expectError wants this code and all of these words.
func expectError(t testing.TB, err error, code uint, says ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want code %d and %q", code, says)
	}
	var e *cni.Error
	if errors.As(err, &e); e == nil || e.Code != code {
		t.Errorf("error %v has code %+v, want %d", err, e, code)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error does not say %q:\n%v", s, err)
		}
	}
}

// words is a list of anything as text.
func words[T any](list []T) string { return strings.Trim(fmt.Sprint(list), "[]") }
