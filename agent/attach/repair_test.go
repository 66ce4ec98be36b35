package attach

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/cni"
)

func (a *agent) repair(t testing.TB) string {
	t.Helper()
	repaired, err := a.Repair(t.Context())
	if err != nil {
		t.Fatalf("Repair: %v", err)
	}
	return strings.Join(repaired, "\n")
}

func TestARowThatSomebodyDeletedComesBackAsItWas(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		n := newNode(t, "198.18.0.0/24")
		a := n.start()
		a.add(t, pod(1))
		a.add(t, pod(2))
		if restarted {
			a = n.start()
			a.adopt(t)
		}
		row := n.rows[linkOf(pod(1))]
		delete(n.rows, row.Name)
		expect(t, "repaired", a.repair(t), "put back port "+row.Name+" of pod default/web-1")
		row.OFPort = 0 // ovs-vswitchd has not answered yet
		got := n.rows[row.Name]
		got.OFPort = 0
		expect(t, "the row", got, row)
		expect(t, "attachments", len(a.Attachments()), 2)
		expect(t, "repaired again", a.repair(t), "")
	}
}

func TestNothingIsRepairedWhenAllIsWell(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	n.rows[linkOf(pod(1))].ExternalIDs["somebody-elses"] = "id"
	a.onStep(nil)
	expect(t, "repaired", a.repair(t), "")
	expect(t, "steps", a.trail(), "")
}

func TestAnAddressWhoseRowSomebodyDeletedIsNotGivenToAnother(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	a.add(t, pod(1))
	clear(n.rows)
	expect(t, "usage", a.Usage().Ranges[0].Used, 1)
	_, err := a.Add(t.Context(), pod(2), n.netns)
	expectError(t, err, cni.ErrNoFreeAddress)
}

func TestChangedIDsArePutBackAndTheLeaseStays(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	ids := n.rows[linkOf(pod(1))].ExternalIDs
	ids[keyAddresses], ids["somebody-elses"] = "198.18.0.9", "id"
	delete(ids, keyPod)
	if used := a.Usage().Ranges[0].Used; used != 2 {
		t.Errorf("%d addresses in use, want 2: what was given and what the row says", used)
	}
	expect(t, "repaired", a.repair(t), "put back the external_ids of port "+linkOf(pod(1))+" of pod default/web-1")
	p := n.rows[linkOf(pod(1))]
	expect(t, "ids", p.ExternalIDs[keyPod]+" "+p.ExternalIDs[keyAddresses]+" "+p.ExternalIDs["somebody-elses"], "default/web-1 198.18.0.2 id")
}

func TestAnAttachmentWithoutRowAndDeviceIsGivenUpAndItsAddressRests(t *testing.T) {
	n := newNode(t, "198.18.0.0/30")
	a := n.start()
	a.add(t, pod(1))
	clear(n.rows)
	clear(n.links)
	expect(t, "repaired", a.repair(t), "gave up port "+linkOf(pod(1))+" of pod default/web-1: somebody removed it and its device")
	expect(t, "usage", a.Usage().Ranges[0], Range{CIDR: n.cidrs[0], Capacity: 1, Cooling: 1})
	n.pass(time.Minute)
	a.add(t, pod(2))
	a.del(t, pod(1)) // late, and harmless
	expect(t, "the node", n.dump(), strings.Replace(attached(pod(2)), "web-2 "+linkOf(pod(2))+" 1", "web-2 "+linkOf(pod(2))+" 2", 1))
}

func TestARowWhoseDeviceAloneIsGoneWaitsForItsDEL(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	clear(n.links)
	expect(t, "repaired", a.repair(t), "")
	expect(t, "rows", len(n.rows), 1)
}

func TestRepairNeverTouchesWhatACommandIsUnderWayFor(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	look := func(step string) error {
		if repaired := a.repair(t); repaired != "" {
			t.Errorf("%s: repaired %q", step, repaired)
		}
		return nil
	}
	a.onStep(look)
	a.add(t, pod(1))
	a.onStep(look)
	a.del(t, pod(1))
	expect(t, "repaired after the DEL", a.repair(t), "")
	expect(t, "what is left", n.dump(), "")
}

func TestRowsAreNotPutBackByAnOldLookWhileTheirDELRuns(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	links := &racingLinks{node: n}
	a := n.startWith(n, links)
	a.add(t, pod(1))
	clear(n.rows)
	links.during = func() { a.del(t, pod(1)) } // between Repair's look at the rows and its deed
	expect(t, "repaired", a.repair(t), "")
	expect(t, "rows", len(n.rows), 0)
}

func TestAnUnreachableOVSDBIsNotTakenForDeletedRows(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	clear(n.rows)
	n.down = errors.New("connection lost")
	expect(t, "repaired", a.repair(t), "")
	n.down = nil
	if a.repair(t) == "" {
		t.Error("nothing repaired once OVSDB is back")
	}
}

func TestAFailedRepairNamesThePodAndTheOthersAreRepaired(t *testing.T) {
	n := newNode(t, "198.18.0.0/24")
	a := n.start()
	a.add(t, pod(1))
	a.add(t, pod(2))
	clear(n.rows)
	first := true
	a.onStep(func(step string) error {
		if step == "StartPort" && first {
			first = false
			return errors.New("broken on purpose")
		}
		return nil
	})
	repaired, err := a.Repair(t.Context())
	if len(repaired) != 1 || err == nil || !strings.Contains(err.Error(), "of pod default/web-") || !strings.Contains(err.Error(), "cannot be put back: broken on purpose") {
		t.Errorf("repaired %q, %v", repaired, err)
	}
	expect(t, "rows", len(n.rows), 1)
	for name := range n.rows {
		expect(t, "the problem that is left", strings.Contains(strings.Join(a.Problems(), "\n"), name), false)
	}
	expect(t, "problems", len(a.Problems()), 1)
	a.repair(t)
	expect(t, "problems afterwards", len(a.Problems()), 0)
}
