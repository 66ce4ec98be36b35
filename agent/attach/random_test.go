package attach

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/cni"
)

var seed = flag.Uint64("seed", 0, "of the random tests; 0 takes a new one. A failure prints it")

// game plays a runtime, a cluster and bad luck against the agent of one node, one operation after the
// other, and looks after each whether anything contradicts what a runtime was told.
type game struct {
	*testing.T
	rand  *rand.Rand
	n     *node
	a     *agent
	ports Ports
	links Links
	// netns makes the network namespace of a new sandbox; vanish removes it with the interfaces in it.
	netns  func(sandbox string) *os.File
	vanish func(sandbox string)
	// carried are the addresses of the pod ends by the name of the host end.
	carried func() map[string][]netip.Addr
	most    int // pods at a time

	// live are the interfaces whose ADD was answered, limbo those that wait for a DEL: their ADD failed, or a
	// DEL has begun, or they were lost while no agent ran.
	live, limbo map[string]*played
	// damaged are live ones whose row somebody changed since the last Repair.
	damaged map[string]bool
	// freed is when an address was given back to the agent that runs now.
	freed  map[netip.Addr]time.Time
	serial int
	did    []string
	count  map[string]int
}

// played is one interface of one pod.
type played struct {
	req    *cni.Request
	netns  *os.File
	result *cni.Result
	gone   bool // the namespace
}

// play makes a game on a node and plays it. Its result is for the log.
func (g *game) play(operations int) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	g.rand = rand.New(rand.NewPCG(s, 0))
	g.live, g.limbo, g.damaged = map[string]*played{}, map[string]*played{}, map[string]bool{}
	g.count = map[string]int{}
	g.restart()
	defer func() {
		if g.Failed() {
			g.Logf("seed %d, the last operations:\n%s", s, strings.Join(g.did, "\n"))
		}
	}()
	for range operations {
		g.operate()
		g.check()
		if g.Failed() {
			return
		}
	}
	for _, network := range []string{"twill", "storage"} {
		if err := g.a.GC(g.Context(), valid(network)); err != nil {
			g.Errorf("the last GC: %v", err)
		}
	}
	if err := g.a.Apply(g.Context()); err != nil {
		g.Error(err)
	}
	g.live, g.limbo = nil, nil
	g.check()
	expect(g.T, "what is left", g.n.dump(), "")
	for _, r := range g.a.Usage().Ranges {
		expect(g.T, "addresses in use at the end", r.Used, 0)
	}
	g.Logf("seed %d: %v", s, g.count)
}

func (g *game) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	g.did = append(g.did, line)
	g.did = g.did[max(0, len(g.did)-30):]
	g.count[strings.Fields(line)[0]]++
}

func (g *game) operate() {
	switch n := g.rand.IntN(100); {
	case n < 35 && len(g.live)+len(g.limbo) < g.most:
		g.add(g.newPod())
	case n < 58:
		if p := g.pick(g.live, g.limbo); p != nil {
			g.del(p)
		}
	case n < 63:
		if p := g.pick(g.limbo); p != nil && !p.gone {
			g.add(p) // the runtime tries once more in the same sandbox
		}
	case n < 68:
		if p := g.pick(g.live); p != nil {
			g.again(p)
		}
	case n < 76:
		if p := g.pick(g.live); p != nil {
			g.verify(p)
		}
	case n < 79:
		g.collect()
	case n < 81:
		g.note("restart")
		g.restart()
	case n < 82 && g.rand.IntN(5) == 0:
		g.reboot()
	case n < 83:
		g.renumber()
	case n < 86:
		if p := g.pick(g.live); p != nil {
			g.note("row-deleted %s", linkOf(p.req))
			g.must(g.ports.DeletePorts(g.Context(), bridge, linkOf(p.req)))
			g.damaged[linkOf(p.req)] = true
		}
	case n < 87:
		if p := g.pick(g.live); p != nil && !g.damaged[linkOf(p.req)] {
			g.note("row-changed %s", linkOf(p.req))
			g.must(g.ports.SetPortIDs(g.Context(), bridge, linkOf(p.req), map[string]string{keyMAC: "x"}))
			g.damaged[linkOf(p.req)] = true
		}
	case n < 91:
		g.repair()
	case n < 92:
		if p := g.pick(g.live); p != nil {
			g.note("netns-vanished %s", p.req.ContainerID)
			g.vanish(p.req.ContainerID)
			for _, m := range []map[string]*played{g.live, g.limbo} {
				for _, other := range m {
					if other.req.ContainerID == p.req.ContainerID {
						other.gone = true
						g.toLimbo(other)
					}
				}
			}
		}
	default:
		d := time.Duration(g.rand.IntN(40)) * time.Second
		g.note("time passes: %s", d)
		g.n.pass(d)
	}
}

func (g *game) must(err error) {
	g.Helper()
	if err != nil {
		g.Error(err)
	}
}

// pick takes one of these at random, nil when there is none.
func (g *game) pick(from ...map[string]*played) *played {
	all := map[string]*played{}
	for _, m := range from {
		maps.Copy(all, m)
	}
	if len(all) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(all))
	return all[names[g.rand.IntN(len(names))]]
}

func (g *game) toLimbo(p *played) {
	delete(g.live, linkOf(p.req))
	g.limbo[linkOf(p.req)] = p
}

// newPod is a new sandbox or, now and then, another interface of one that is there.
func (g *game) newPod() *played {
	if p := g.pick(g.live); p != nil && g.rand.IntN(6) == 0 {
		second := *p.req
		second.IfName, second.PrevResult = "net1", nil
		if name := linkOf(&second); g.live[name] == nil && g.limbo[name] == nil {
			return &played{req: &second, netns: p.netns}
		}
	}
	g.serial++
	req := pod(g.serial)
	req.Pod.Name = fmt.Sprintf("web-%d", g.rand.IntN(g.most)) // also an old name in a new sandbox
	switch g.rand.IntN(8) {
	case 0:
		req.Config.Name = "storage"
	case 1:
		req.Pod = cni.PodRef{}
	}
	return &played{req: req, netns: g.netns(req.ContainerID)}
}

// mishap lets something happen at a random step of the next command: the agent is killed, the step fails,
// or the caller gives up. trouble says afterwards whether it did.
func (g *game) mishap() (ctx context.Context, trouble func() string) {
	ctx, cancel := context.WithCancel(g.Context())
	at, kind, happened := g.rand.IntN(10), g.rand.IntN(12), ""
	if kind > 2 {
		return ctx, func() string { cancel(); return "" }
	}
	a := g.a
	steps := 0
	step := func(name string) error {
		steps++
		if steps-1 != at {
			return nil
		}
		happened = []string{"killed", "failed", "given up"}[kind] + " at " + name
		switch kind {
		case 0:
			return a.kill()
		case 1:
			return errors.New("broken on purpose")
		}
		cancel()
		return nil
	}
	a.onStep(func(name string) error { // steps may run side by side
		g.n.steps.Lock()
		defer g.n.steps.Unlock()
		return step(name)
	})
	return ctx, func() string {
		cancel()
		a.onStep(nil)
		if a.isDead() {
			g.restart()
		}
		return happened
	}
}

func (g *game) add(p *played) {
	name := linkOf(p.req)
	ctx, trouble := g.mishap()
	exhausted := g.exhausted()
	r, err := g.a.Add(ctx, p.req, p.netns)
	what := trouble()
	g.note("ADD %s: %v, %v %s", name, r, err, what)
	delete(g.limbo, name)
	if err != nil || strings.HasPrefix(what, "killed") {
		g.limbo[name] = p
		if what == "" && !exhausted {
			g.Errorf("ADD failed without a reason: %v", err)
		}
		return
	}
	g.live[name], p.result = p, r
	delete(g.damaged, name)
	g.accept(p)
}

// exhausted says whether a range has no free address right now.
func (g *game) exhausted() bool {
	return slices.ContainsFunc(g.a.Usage().Ranges, func(r Range) bool { return r.Free == 0 })
}

// accept looks at the answer of an ADD.
func (g *game) accept(p *played) {
	cidrs := g.n.cidrs
	if len(p.result.Addresses) != len(cidrs) || len(p.result.Gateways) != len(cidrs) {
		g.Errorf("%s got %v by %v on a node of %v", linkOf(p.req), p.result.Addresses, p.result.Gateways, cidrs)
		return
	}
	for i, a := range p.result.Addresses {
		if !assignable(cidrs[i], a) || p.result.Gateways[i] != gatewayOf(cidrs[i]) {
			g.Errorf("%s got %s by %s of %s", linkOf(p.req), a, p.result.Gateways[i], cidrs[i])
		}
		if since, ok := g.freed[a]; ok && g.n.now.Sub(since) < time.Minute {
			g.Errorf("%s got %s, which has rested for %s only", linkOf(p.req), a, g.n.now.Sub(since))
		}
		delete(g.freed, a)
	}
}

func (g *game) again(p *played) {
	name := linkOf(p.req)
	exhausted := g.exhausted()
	before := p.result.Addresses
	r, err := g.a.Add(g.Context(), p.req, p.netns)
	g.note("ADD-again %s: %v, %v", name, r, err)
	same := err == nil && slices.Equal(r.Addresses, before)
	current := slices.EqualFunc(g.n.cidrs, before, assignable)
	switch {
	case err != nil && !exhausted && g.exhausted() == false:
		g.Errorf("ADD of a live interface failed: %v", err)
		g.toLimbo(p)
	case err != nil:
		g.toLimbo(p)
		g.free(before)
	case !same && current && !g.damaged[name]:
		g.Errorf("%s had %v and got %v by a repeated ADD", name, before, r.Addresses)
	default:
		if !same {
			g.free(before)
		}
		p.result = r
		delete(g.damaged, name)
	}
}

func (g *game) free(addresses []netip.Addr) {
	for _, a := range addresses {
		g.freed[a] = g.n.now
	}
}

func (g *game) del(p *played) {
	name := linkOf(p.req)
	ctx, trouble := g.mishap()
	err := g.a.Del(ctx, p.req)
	what := trouble()
	g.note("DEL %s: %v %s", name, err, what)
	switch {
	case err == nil && !strings.HasPrefix(what, "killed"):
		if g.live[name] != nil {
			g.free(p.result.Addresses)
		}
		delete(g.live, name)
		delete(g.limbo, name)
		delete(g.damaged, name)
	case what == "":
		g.Errorf("DEL failed without a reason: %v", err)
	default:
		g.toLimbo(p)
	}
}

func (g *game) verify(p *played) {
	err := g.a.Check(g.Context(), withPrevious(g.T, p.req, p.result), p.netns)
	g.note("CHECK %s: %v", linkOf(p.req), err)
	if damaged := g.damaged[linkOf(p.req)]; (err != nil) != damaged {
		g.Errorf("CHECK of %s, damaged %v: %v", linkOf(p.req), damaged, err)
	}
}

func (g *game) collect() {
	network := []string{"twill", "storage"}[g.rand.IntN(2)]
	var keep []*cni.Request
	for _, p := range g.live {
		if p.req.Config.Name == network {
			keep = append(keep, p.req)
		}
	}
	err := g.a.GC(g.Context(), valid(network, keep...))
	g.note("GC of %s, keeping %d: %v", network, len(keep), err)
	g.must(err)
	for name, p := range g.limbo {
		if p.req.Config.Name == network {
			delete(g.limbo, name)
		}
	}
}

// restart starts another agent. What lost its row, or was damaged, since the last Repair is lost for good.
func (g *game) restart() {
	g.a = g.n.startWith(g.ports, g.links)
	_, _, err := g.a.Adopt(g.Context())
	g.must(err)
	g.must(g.a.Apply(g.Context()))
	g.freed = map[netip.Addr]time.Time{}
	for name := range g.damaged {
		if p := g.live[name]; p != nil {
			g.toLimbo(p)
		}
	}
	clear(g.damaged)
}

func (g *game) reboot() {
	g.note("reboot")
	_, err := RemoveLinks(g.links)
	g.must(err)
	for _, p := range g.live {
		g.toLimbo(p)
	}
	g.restart()
}

func (g *game) renumber() {
	ranges := [][]string{{"198.18.0.0/27", "2001:db8::/64"}, {"198.18.0.0/28"}, {"2001:db8::/123"}, {"198.18.0.16/28", "2001:db8:1::/64"}}
	cidrs := ranges[g.rand.IntN(len(ranges))]
	g.note("podCIDRs %v", cidrs)
	g.n.setCIDRs(cidrs...)
}

func (g *game) repair() {
	repaired, err := g.a.Repair(g.Context())
	g.note("Repair: %q, %v", repaired, err)
	g.must(err)
	clear(g.damaged)
}

// carried are the addresses of the node's own links.
func (n *node) carried() map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string][]netip.Addr{}
	for name, v := range n.links {
		out[name] = v.Addresses
	}
	return out
}

func (n *node) vanish(sandbox string) {
	for _, ifName := range []string{"eth0", "net1"} {
		n.DeleteVeth(linkName(sandbox, ifName))
	}
}

func TestAHundredThousandRandomOperationsLeakNothingAndDuplicateNothing(t *testing.T) {
	n := newNode(t, "198.18.0.0/27", "2001:db8::/64")
	g := &game{
		T: t, n: n, ports: n, links: n, most: 16,
		netns: func(string) *os.File { return n.netns }, vanish: n.vanish, carried: n.carried,
	}
	operations := 100_000
	if testing.Short() {
		operations = 10_000
	}
	g.play(operations)
}
