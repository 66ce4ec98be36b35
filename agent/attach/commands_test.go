package attach

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/ovs"
)

const (
	addSteps = "AddVeth StartPort Apply WaitPort"
	delSteps = "Apply DeletePorts DeleteVeth"
)

func TestADDGoesFromTheVethToTheFlowsAndDELBack(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	r := a.add(t, pod(1))
	expect(t, "steps of ADD", a.trail(), addSteps)
	expect(t, "the node", n.dump(), attached(pod(1)))
	expect(t, "result", fmt.Sprint(*r), "{"+linkOf(pod(1))+"  0a:77:c6:12:00:02 1450 [198.18.0.2] [198.18.0.1] [{198.18.0.1/32 invalid IP} {0.0.0.0/0 198.18.0.1}]}")
	a.onStep(nil)
	a.del(t, pod(1))
	expect(t, "steps of DEL", a.trail(), delSteps)
	expect(t, "the node", n.dump(), "")
}

func TestARepeatedADDReportsTheSameAndChangesNothing(t *testing.T) {
	n := newNode(t, "198.18.0.0/24", "2001:db8::/64")
	a := n.start()
	first := a.add(t, pod(1))
	before := n.dump()
	a.onStep(nil)
	expect(t, "second result", *a.add(t, pod(1)), *first)
	expect(t, "steps", a.trail(), "Apply WaitPort")
	expect(t, "the node", n.dump(), before)
	b := n.start() // also after a restart
	b.adopt(t)
	expect(t, "result of the next agent", *b.add(t, pod(1)), *first)
	expect(t, "the node", n.dump(), before)
}

func TestARepeatedADDMakesAnewWhatIsNotAsItWas(t *testing.T) {
	for name, damage := range map[string]func(n *node, link string){
		"veth gone":    func(n *node, link string) { delete(n.links, link) },
		"veth changed": func(n *node, link string) { v := n.links[link]; v.MTU = 1400; n.links[link] = v },
		"row gone":     func(n *node, link string) { delete(n.rows, link) },
		"row damaged":  func(n *node, link string) { n.rows[link].ExternalIDs[keyMAC] = "x" },
		"port failed":  func(n *node, link string) { p := n.rows[link]; p.OFPort = -1; n.rows[link] = p },
	} {
		for _, restart := range []bool{false, true} {
			n := newNode(t, "198.18.0.0/24")
			a := n.start()
			a.add(t, pod(1))
			damage(n, linkOf(pod(1)))
			if restart {
				a = n.start()
			}
			r := a.add(t, pod(1))
			if err := a.Check(t.Context(), withPrevious(t, pod(1), r), n.netns); err != nil {
				t.Errorf("%s, restart %v: CHECK after it: %v", name, restart, err)
			}
			expect(t, name+": rows and links", fmt.Sprint(len(n.rows), len(n.links)), "1 1")
			expect(t, name+": addresses in use", a.Usage().Ranges[0].Used, 1)
		}
	}
}

func TestAnADDThatFailsAtAnyStepLeavesNothing(t *testing.T) {
	broken := errors.New("broken on purpose")
	for _, c := range []struct {
		step  string
		err   error
		code  uint   // 0 is any
		steps string // "" is any
		rests bool
	}{
		{"AddVeth", broken, 0, "AddVeth DeleteVeth", false},
		{"AddVeth", fmt.Errorf("eth0: %w", host.ErrInterfaceTaken), cni.ErrInterfaceExists, "AddVeth DeleteVeth", false},
		{"AddVeth", fmt.Errorf("eth0: %w", host.ErrNoNetNS), cni.ErrInvalidNetNS, "AddVeth DeleteVeth", false},
		{"done AddVeth", broken, 0, "", true}, // the port had begun, or more
		{"StartPort", broken, cni.ErrPort, "AddVeth StartPort Apply DeletePorts DeleteVeth", true},
		{"done StartPort", broken, cni.ErrPort, "AddVeth StartPort Apply DeletePorts DeleteVeth", true},
		{"WaitPort", broken, cni.ErrPort, addSteps + " " + delSteps, true},
		{"WaitPort", context.DeadlineExceeded, cni.ErrTryAgain, addSteps + " " + delSteps, true},
		{"done WaitPort", broken, cni.ErrPort, addSteps + " " + delSteps, true},
		{"Apply", broken, cni.ErrTryAgain, addSteps + " " + delSteps, true},
		{"done Apply", broken, cni.ErrTryAgain, addSteps + " " + delSteps, true},
	} {
		n := newNode(t, "198.18.0.0/24")
		a := n.start()
		failed := false
		a.onStep(func(step string) error {
			if step != c.step || failed {
				return nil
			}
			failed = true
			return c.err
		})
		_, err := a.Add(t.Context(), pod(1), n.netns)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: error %v, want one that wraps %v", c.step, err, c.err)
		}
		if c.code != 0 {
			expectError(t, err, c.code)
		}
		if c.steps != "" {
			expect(t, c.step+": steps", a.trail(), c.steps)
		}
		expect(t, c.step+": what is left", n.dump(), "")
		want := Range{CIDR: n.cidrs[0], Capacity: 253, Free: 253}
		if c.rests {
			want.Cooling, want.Free = 1, 252
		}
		expect(t, c.step+": usage", a.Usage().Ranges[0], want)
		a.onStep(nil)
		a.add(t, pod(1))
	}
}

func TestAnADDThatIsGivenUpAtAnyStepLeavesNothing(t *testing.T) {
	for _, at := range []string{"AddVeth", "done AddVeth", "StartPort", "done StartPort", "Apply", "WaitPort", "done WaitPort"} {
		n := newNode(t, "198.18.0.0/24")
		a := n.start()
		ctx, cancel := context.WithCancel(t.Context())
		a.onStep(func(step string) error {
			if step == at {
				cancel()
			}
			return nil
		})
		_, err := a.Add(ctx, pod(1), n.netns)
		last := at == "done WaitPort" || at == "done AddVeth" // either may be: they are side by side
		if !errors.Is(err, context.Canceled) && (err != nil || !last) {
			t.Errorf("%s: %v, want the end of the context", at, err)
		}
		if err != nil {
			expect(t, at+": what is left", n.dump(), "")
		}
	}
}

// lateDB commits a StartPort that its caller gave up only when the next change comes.
type lateDB struct {
	*node
	pending *ovs.Port
}

func (l *lateDB) StartPort(ctx context.Context, _ string, p ovs.Port) error {
	l.pending = &p
	return context.Canceled
}

func (l *lateDB) DeletePorts(ctx context.Context, bridge string, names ...string) error {
	if p := l.pending; p != nil {
		l.pending = nil
		if err := l.node.StartPort(ctx, bridge, *p); err != nil {
			return err
		}
	}
	return l.node.DeletePorts(ctx, bridge, names...)
}

func TestARowThatComesAfterItsADDWasGivenUpIsDeleted(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	db := &lateDB{node: n}
	a := n.startWith(db, n)
	_, err := a.Add(t.Context(), pod(1), n.netns)
	expectError(t, err, cni.ErrTryAgain)
	if db.pending != nil {
		t.Error("the transaction under way was not waited for")
	}
	expect(t, "what is left", n.dump(), "")
}

func TestWhatAnADDCouldNotUndoStaysLeasedUntilADELSucceeds(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	a.onStep(func(step string) error {
		if step == "WaitPort" || step == "DeletePorts" {
			return errors.New("broken on purpose")
		}
		return nil
	})
	if _, err := a.Add(t.Context(), pod(1), n.netns); err == nil || strings.Count(err.Error(), "broken on purpose") != 2 {
		t.Errorf("error %v, want both failures", err)
	}
	a.onStep(nil)
	expect(t, "attachments while it waits for its DEL", len(a.Attachments()), 0)
	delete(n.rows, linkOf(pod(1))) // even then
	_, err := a.Add(t.Context(), pod(2), n.netns)
	expectError(t, err, cni.ErrNoFreeAddress)
	if repaired, err := a.Repair(t.Context()); len(repaired) > 0 || err != nil {
		t.Errorf("Repair of what is leaving: %q, %v", repaired, err)
	}
	a.del(t, pod(1))
	n.pass(time.Minute)
	a.add(t, pod(2))
}

func TestAnotherOpenFlowNumberThanRequestedGetsItsFlows(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	n.number = func(ovs.Port) int { return 77 }
	a := n.start()
	// The loop looks at the World before ovs-vswitchd has answered.
	applied := make(chan bool, 2)
	a.onStep(func(step string) error {
		switch step {
		case "done Apply":
			applied <- true
		case "WaitPort":
			<-applied
		}
		return nil
	})
	a.add(t, pod(1))
	expect(t, "steps", strings.Count(a.trail(), "Apply"), 2)
	expect(t, "the node", n.dump(), strings.Replace(attached(pod(1)), linkOf(pod(1))+" 1", linkOf(pod(1))+" 77", 1))

	a.onStep(func(step string) error {
		if step == "Apply" && strings.Count(a.trail(), "Apply") == 2 {
			return errors.New("broken on purpose")
		}
		return nil
	})
	_, err := a.Add(t.Context(), pod(2), n.netns)
	expectError(t, err, cni.ErrTryAgain, "the flows of pod default/web-2 are not in place", "broken on purpose")
	expect(t, "what is left of it", strings.Contains(n.dump(), linkOf(pod(2))), false)
}

func TestADDIsRefusedWhileTheNodeIsNotReady(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	n.notReady = errors.New("ovs-vswitchd is not running")
	a := n.start()
	_, err := a.Add(t.Context(), pod(1), n.netns)
	expectError(t, err, cni.ErrTryAgain, "node node-1 is not ready for pods", "ovs-vswitchd is not running")
	expect(t, "steps", a.trail(), "")
	expectError(t, a.Status(t.Context(), nil), cni.ErrNotAvailable, "node node-1 is not ready for pods", "ovs-vswitchd is not running")
}

func TestDELOfWhatIsNotThereIsNoError(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.del(t, pod(1))
	a.add(t, pod(1))
	delete(n.links, linkOf(pod(1))) // its network namespace has vanished
	for range 2 {
		gone := *pod(1)
		gone.NetNS, gone.Pod = "", cni.PodRef{}
		a.del(t, &gone)
		expect(t, "what is left", n.dump(), "")
	}
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 253, Cooling: 1, Free: 252})
}

func TestDELWhileOVSDBIsAwayIsToBeRepeated(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	n.down = errors.New("connection refused")
	for _, req := range []*cni.Request{pod(1), pod(2)} { // who knows whether there is a second one
		expectError(t, a.Del(t.Context(), req), cni.ErrTryAgain, "detaching "+linkOf(req), "connection refused")
	}
	expectError(t, a.Check(t.Context(), pod(1), n.netns), cni.ErrTryAgain, "checking interface eth0 of sandbox-1", "connection refused")
	expect(t, "the node", n.dump(), attached(pod(1)))
	n.down = nil
	a.fail("DeletePorts", errors.New("connection lost"))
	expectError(t, a.Del(t.Context(), pod(1)), cni.ErrTryAgain, "detaching "+linkOf(pod(1)), "connection lost")
	expect(t, "attachments after the DEL has begun", len(a.Attachments()), 0)
	a.onStep(nil)
	a.del(t, pod(1))
	expect(t, "what is left", n.dump(), "")
}

func TestDELGoesOnWhenTheFlowsCannotBeRemoved(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.fail("Apply", errors.New("ovs-vswitchd is not running"))
	a.del(t, pod(1))
	a.onStep(nil)
	if err := a.Apply(t.Context()); err != nil { // the loop's next pass
		t.Fatal(err)
	}
	expect(t, "what is left", n.dump(), "")
}

func TestAnAddressIsInUseUntilItsVethIsGone(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	a.add(t, pod(1))
	for _, at := range []string{"DeletePorts", "done DeletePorts", "DeleteVeth", "done DeleteVeth"} {
		a.onStep(func(step string) error {
			if step == at {
				if used := a.Usage().Ranges[0].Used; used != 1 {
					t.Errorf("%s: %d addresses in use, want 1", at, used)
				}
				return errors.New("broken on purpose")
			}
			return nil
		})
		if err := a.Del(t.Context(), pod(1)); err == nil {
			t.Errorf("%s: no error", at)
		}
		_, err := a.Add(t.Context(), pod(2), n.netns)
		expectError(t, err, cni.ErrNoFreeAddress)
	}
	a.onStep(nil)
	a.del(t, pod(1))
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 1, Cooling: 1})
}

func TestALeavingPodIsNeverAmongTheAttachmentsAgain(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	left := false
	a.onStep(func(step string) error {
		if got := len(a.Attachments()); got != 0 {
			t.Errorf("%s: %d attachments", step, got)
		}
		left = true
		return nil
	})
	a.del(t, pod(1))
	expect(t, "looked", left, true)
	expect(t, "attachments afterwards", len(a.Attachments()), 0)
}

// racingDB lets a DEL run to its end while somebody is reading the rows.
type racingDB struct {
	*node
	during func()
}

func (r *racingDB) Ports(bridge string) []ovs.Port {
	rows := r.node.Ports(bridge)
	if f := r.during; f != nil {
		r.during = nil
		f()
	}
	return rows
}

func TestRowsReadBeforeADELAreNoAttachmentsAfterIt(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	db := &racingDB{node: n}
	a := n.startWith(db, n)
	a.add(t, pod(1))
	// A DEL has begun when Attachments is called, and ends between its two looks.
	begun, finish, done := make(chan bool), make(chan bool), make(chan error)
	a.onStep(func(step string) error {
		if step == "Apply" {
			close(begun)
			<-finish
			return errors.New("ovs-vswitchd is away")
		}
		return nil
	})
	go func() { done <- a.Del(t.Context(), pod(1)) }()
	<-begun
	db.during = func() {
		close(finish)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	expect(t, "attachments", len(a.Attachments()), 0)
}

func TestSeveralInterfacesOfAPodLiveAndDieAlone(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	second := pod(1)
	second.IfName = "net1"
	a.add(t, pod(1))
	r := a.add(t, second)
	expect(t, "routes of the second interface", words(r.Routes), "")
	v := n.links[linkOf(second)]
	expect(t, "default route, gateways on its link", fmt.Sprint(v.DefaultRoute, v.Gateways), "false []")
	expect(t, "the node", n.dump(), attached(pod(1), second))
	a.del(t, pod(1))
	if err := a.Check(t.Context(), withPrevious(t, second, r), n.netns); err != nil {
		t.Errorf("CHECK of the second interface: %v", err)
	}
	a.del(t, second)
	expect(t, "what is left", n.dump(), "")
}

func TestAPodInANewSandboxGetsItsOwnAddressBesideTheOldOne(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	again := pod(1)
	again.ContainerID = "sandbox-1b"
	old, r := a.add(t, pod(1)), a.add(t, again)
	if old.Addresses[0] == r.Addresses[0] || old.HostInterface == r.HostInterface {
		t.Errorf("old %v, new %v share something", old, r)
	}
	expect(t, "attachments of the pod", len(a.Attachments()["pod/default/web-1"]), 2)
	a.del(t, pod(1))
	expect(t, "the one that is left", a.Attachments()["pod/default/web-1"][0].Sandbox, "sandbox-1b")
}

func TestASandboxWithoutAKubernetesPodIsAttachedByItsID(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	req := pod(1)
	req.Pod = cni.PodRef{}
	a.add(t, req)
	expect(t, "attachments", len(a.Attachments()["pod/_/sandbox-1"]), 1)
	a.del(t, req)
	expect(t, "what is left", n.dump(), "")
}

func TestCHECKNamesEachDamage(t *testing.T) {
	for _, c := range []struct {
		says   string
		code   uint
		damage func(n *node, link string)
	}{
		{"its port " + linkOf(pod(1)) + "; it is being restored", cni.ErrTryAgain, func(n *node, link string) { delete(n.rows, link) }},
		{`twill-mac="x" is no Ethernet address`, cni.ErrDiffers, func(n *node, link string) { n.rows[link].ExternalIDs[keyMAC] = "x" }},
		{"could not make it: no such device", cni.ErrDiffers, func(n *node, link string) {
			p := n.rows[link]
			p.OFPort, p.Error = -1, "no such device"
			n.rows[link] = p
		}},
		{"has the hardware address 0a:77:c6:12:00:02, but it was given 0a:77:c6:12:00:09", cni.ErrDiffers, func(n *node, link string) { n.rows[link].ExternalIDs[keyMAC] = "0a:77:c6:12:00:09" }},
		{"does not list the address 198.18.0.9", cni.ErrDiffers, func(n *node, link string) { n.rows[link].ExternalIDs[keyAddresses] = "198.18.0.9" }},
		{"interface eth0 of sandbox-1: host end " + linkOf(pod(1)) + ": link not found", cni.ErrDiffers, func(n *node, link string) { delete(n.links, link) }},
		{"interface eth0 of sandbox-1: eth0 is not as it was made", cni.ErrDiffers, func(n *node, link string) { v := n.links[link]; v.MTU--; n.links[link] = v }},
	} {
		n := newNode(t, "198.18.0.0/24")
		a := n.start()
		req := withPrevious(t, pod(1), a.add(t, pod(1)))
		if err := a.Check(t.Context(), req, n.netns); err != nil {
			t.Fatalf("before any damage: %v", err)
		}
		c.damage(n, linkOf(pod(1)))
		expectError(t, a.Check(t.Context(), req, n.netns), c.code, c.says)
	}
	n := newNode(t, "198.18.0.0/24")
	expectError(t, n.start().Check(t.Context(), pod(1), n.netns), cni.ErrUnknownContainer, "interface eth0 of sandbox-1 has no port on bridge br-twill", "delete the pod")
}

func TestSTATUSTellsWhetherAnADDCouldSucceed(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	if err := a.Status(t.Context(), nil); err != nil {
		t.Errorf("an empty node: %v", err)
	}
	a.add(t, pod(1))
	expectError(t, a.Status(t.Context(), nil), cni.ErrNotAvailable, "podCIDR 198.18.0.0/30 of node node-1 has no free address", "1 are in use")
	a.del(t, pod(1))
	if err := a.Status(t.Context(), nil); err != nil { // it rests for a moment only
		t.Errorf("an address that rests: %v", err)
	}
	n.setCIDRs()
	expectError(t, a.Status(t.Context(), nil), cni.ErrNotAvailable, "node node-1 has no usable podCIDR")
}
