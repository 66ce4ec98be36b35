package attach

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
)

// valid is a GC request of a network that lists these attachments.
func valid(network string, reqs ...*cni.Request) *cni.Request {
	gc := &cni.Request{Command: cni.CommandGC, Config: cni.Config{Name: network}}
	for _, r := range reqs {
		gc.ValidAttachments = append(gc.ValidAttachments, cni.Attachment{ContainerID: r.ContainerID, IfName: r.IfName})
	}
	return gc
}

func TestGCRemovesWhatTheRuntimeDoesNotListOfThatNetworkOnly(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	other := pod(3)
	other.Config.Name = "storage"
	for _, r := range []*cni.Request{pod(1), pod(2), other} {
		a.add(t, r)
	}
	for _, orphan := range []string{"tw0000000000001", "twnothex0000000", "eth0", "veth1"} {
		n.links[orphan] = host.Veth{Host: orphan}
	}
	if err := a.GC(t.Context(), valid("twill", pod(2), pod(7))); err != nil {
		t.Fatal(err)
	}
	links := slices.Sorted(maps.Keys(n.links))
	want := []string{"eth0", linkOf(pod(2)), linkOf(other), "twnothex0000000", "veth1"}
	slices.Sort(want)
	expect(t, "links", words(links), words(want))
	expect(t, "rows", len(n.rows), 2)
	expect(t, "attachments", fmt.Sprint(slices.Sorted(maps.Keys(a.Attachments()))), "[pod/default/web-2 pod/default/web-3]")
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 253, Used: 2, Cooling: 1, Free: 250})
}

func TestGCLeavesAloneWhatACommandIsUnderWayFor(t *testing.T) {
	for _, at := range []string{"AddVeth", "done AddVeth", "StartPort", "done StartPort", "Apply", "done WaitPort"} {
		n := newNode(t, "198.18.0.0/24")
		a := n.start()
		collected := false
		a.onStep(func(step string) error {
			if step != at || collected {
				return nil
			}
			collected = true
			return a.GC(t.Context(), valid("twill"))
		})
		a.add(t, pod(1))
		expect(t, at+": collected", collected, true)
		expect(t, at+": the node", n.dump(), attached(pod(1)))
	}
}

func TestGCLeavesAloneWhatWasUnderWayWhenItBegan(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	links := &racingLinks{node: n}
	a := n.startWith(n, links)
	begun, finish, done := make(chan bool), make(chan bool), make(chan error, 1)
	a.onStep(func(step string) error {
		if step == "StartPort" {
			close(begun)
			<-finish
		}
		return nil
	})
	go func() { _, err := a.Add(t.Context(), pod(1), n.netns); done <- err }()
	<-begun
	links.during = func() { // the ADD ends while GC is looking
		close(finish)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := a.GC(t.Context(), valid("twill")); err != nil {
		t.Fatal(err)
	}
	expect(t, "the node", n.dump(), attached(pod(1)))
}

func TestGCLeavesAloneWhatBeganAndEndedMeanwhile(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	links := &racingLinks{node: n}
	a := n.startWith(n, links)
	links.before = func() { a.add(t, pod(1)) }
	if err := a.GC(t.Context(), valid("twill")); err != nil {
		t.Fatal(err)
	}
	expect(t, "the node", n.dump(), attached(pod(1)))
}

// racingLinks lets something happen before and after somebody lists the links.
type racingLinks struct {
	*node
	before, during func()
}

func (r *racingLinks) Veths(prefix string) ([]string, error) {
	once := func(f *func()) {
		if now := *f; now != nil {
			*f = nil
			now()
		}
	}
	once(&r.before)
	links, err := r.node.Veths(prefix)
	once(&r.during)
	return links, err
}

func TestGCReportsEveryFailureAndRemovesTheRest(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	for i := range 3 {
		a.add(t, pod(i))
	}
	failures := 0
	a.onStep(func(step string) error {
		if step == "DeleteVeth" && failures < 2 {
			failures++
			return fmt.Errorf("failure %d", failures)
		}
		return nil
	})
	err := a.GC(t.Context(), valid("twill"))
	expect(t, "error", errText(err), "failure 1\nfailure 2")
	expect(t, "rows and links left", fmt.Sprint(len(n.rows), len(n.links)), "0 2")
	expect(t, "addresses in use", a.Usage().Ranges[0].Used, 2)
	if err := a.GC(t.Context(), valid("twill")); err != nil {
		t.Errorf("GC again: %v", err)
	}
	expect(t, "what is left", n.dump(), "")
}

func TestGCAlsoRemovesAnAttachmentThatLostItsRow(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	clear(n.rows)
	if err := a.GC(t.Context(), valid("twill", pod(2))); err != nil {
		t.Fatal(err)
	}
	expect(t, "links", words(slices.Collect(maps.Keys(n.links))), linkOf(pod(2)))
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 253, Used: 1, Cooling: 1, Free: 251})
}

func TestAPanicInGCLeavesNothingUnderWay(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.onStep(func(string) error { panic("on purpose") })
	func() {
		defer func() { recover() }()
		a.GC(t.Context(), valid("twill"))
		t.Error("no panic")
	}()
	a.onStep(nil)
	a.del(t, pod(1))
	expect(t, "what is left", n.dump(), "")
}

func TestARestartTakesEverythingOverAsItIs(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	r := a.add(t, pod(1))
	a.add(t, pod(2))
	before := n.dump()
	b := n.start()
	adopted, removed := b.adopt(t)
	expect(t, "adopted, removed", fmt.Sprint(adopted, removed), "2 0")
	expect(t, "the node", n.dump(), before)
	expect(t, "steps", b.trail(), "")
	expect(t, "host ends that are sealed", len(n.sealed), 2)
	if err := b.Check(t.Context(), withPrevious(t, pod(1), r), n.netns); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	expect(t, "a new pod's address", words(b.add(t, pod(3)).Addresses), "198.18.0.4")
}

func TestAfterARebootRowsWithoutADeviceGo(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	clear(n.links)
	b := n.start()
	adopted, removed := b.adopt(t)
	expect(t, "adopted, removed", fmt.Sprint(adopted, removed), "0 2")
	expect(t, "what is left", n.dump(), "")
	expect(t, "usage", b.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 253, Cooling: 2, Free: 251})
}

func TestARestartRemovesHostEndsWithoutARow(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	r := a.add(t, pod(1))
	a.add(t, pod(2))
	delete(n.rows, linkOf(pod(1)))
	n.links["tunnel0"] = host.Veth{}
	b := n.start()
	adopted, removed := b.adopt(t)
	expect(t, "adopted, removed", fmt.Sprint(adopted, removed), "1 1")
	_, orphan := n.links[linkOf(pod(1))]
	_, foreign := n.links["tunnel0"]
	expect(t, "orphan and foreign link", fmt.Sprint(orphan, foreign), "false true")
	expectError(t, b.Check(t.Context(), withPrevious(t, pod(1), r), n.netns), cni.ErrUnknownContainer)
}

func TestARestartReportsWhatItCannotRemove(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	clear(n.links)
	b := n.start()
	first := true
	b.onStep(func(step string) error {
		if step == "DeletePorts" && first {
			first = false
			return errors.New("broken on purpose")
		}
		return nil
	})
	adopted, removed, err := b.Adopt(t.Context())
	expectError(t, err, cni.ErrTryAgain, "broken on purpose")
	expect(t, "adopted, removed", fmt.Sprint(adopted, removed), "1 1")
	expect(t, "attachments", len(b.Attachments()), 0)
	n.pass(time.Hour)
	expect(t, "addresses in use", b.Usage().Ranges[0].Used, 1)
}

func TestUninstallingRemovesOurLinksOnly(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	n.start().add(t, pod(1))
	n.links["twill0"], n.links["veth1"] = host.Veth{}, host.Veth{}
	removed, err := RemoveLinks(n)
	expect(t, "removed", fmt.Sprint(removed, err), fmt.Sprint([]string{linkOf(pod(1))}, nil))
	expect(t, "left", len(n.links), 2)
}
