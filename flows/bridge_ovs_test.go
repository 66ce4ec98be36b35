package flows_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/bridgetest"
	"github.com/twill-net/twill/test/ovsd"
)

// bridge is a bridge as an agent makes it, on a private Open vSwitch with a dummy datapath.
type bridge struct {
	t    testing.TB
	ctx  context.Context
	o    *ovsd.OVS
	sw   *ovs.Switch
	ctrl *ovs.Daemon
}

const bridgeName = bridgetest.Name

// startBridge has the tunnel port, the gateway and the numbered ports that pods and one stranger use.
func startBridge(t testing.TB, pods ...uint32) *bridge {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	b := bridgetest.Start(ctx, t, pods...)
	return &bridge{t: t, ctx: ctx, o: b.OVS, ctrl: b.Daemon, sw: b.Switch}
}

func (b *bridge) apply(d flows.Delta) {
	b.t.Helper()
	if err := b.sw.Apply(b.ctx, d.Bundle()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bridge) installed() []ovs.Installed {
	b.t.Helper()
	out, err := b.sw.Flows(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bridge) installedGroups() []flows.LiveGroup {
	b.t.Helper()
	text, err := b.sw.Groups(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := flows.ParseGroups(text)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// diff is what the bridge lacks or has too many.
func (b *bridge) diff(d *flows.Desired) flows.Delta {
	b.t.Helper()
	delta := d.Diff(ovs.Live(b.installed()))
	d.DiffGroups(b.installedGroups(), &delta)
	return delta
}

func (b *bridge) become(d *flows.Desired) flows.Delta {
	b.t.Helper()
	delta := b.diff(d)
	b.apply(delta)
	return delta
}

// TestASwitchHoldsExactlyWhatWasCompiledAndExplainsItTheSame installs every case, and each after every other.
func TestASwitchHoldsExactlyWhatWasCompiledAndExplainsItTheSame(t *testing.T) {
	b := startBridge(t)
	cases := scenarios(t)
	wanted := make([]*flows.Desired, len(cases))
	for i, s := range cases {
		wanted[i] = desired(t, s.world)
	}
	now, groups := ovs.Live(b.installed()), b.installedGroups()
	become := func(i int, before string) {
		t.Helper()
		delta := wanted[i].Diff(now)
		wanted[i].DiffGroups(groups, &delta)
		b.apply(delta)
		now = ovs.Live(b.installed())
		if len(delta.AddGroups)+len(delta.DeleteGroups) > 0 {
			groups = b.installedGroups()
		}
		again := wanted[i].Diff(now)
		wanted[i].DiffGroups(groups, &again)
		if !again.Empty() {
			t.Fatalf("%s after %s is not in step: %d flows to add, %d to delete, %d groups to add, %d to delete: %v %v", cases[i].name, before,
				len(again.Add), len(again.Delete), len(again.AddGroups), len(again.DeleteGroups), again.Add, again.AddGroups)
		}
	}
	for i, s := range cases {
		become(i, "another")
		b.explained(s, wanted[i])
		for j := range i {
			become(j, s.name)
			become(i, cases[j].name)
		}
	}
}

// explained compares each flow of the switch, parsed, with the flow that was compiled.
func (b *bridge) explained(s scenario, d *flows.Desired) {
	b.t.Helper()
	names := flows.NamesOf(s.world)
	seen := 0
	for _, l := range b.installed() {
		want, ok := d.Flow(l.Cookie)
		if !ok {
			b.t.Errorf("%s: the switch holds %+v, which nobody wants", s.name, l)
			continue
		}
		actions, err := flows.ParseActions(l.Actions)
		if err != nil {
			b.t.Errorf("%s: %v", s.name, err)
			continue
		}
		seen++
		got := flows.Flow{Table: flows.Table(l.Table), Priority: l.Priority, Match: flows.ParseMatch(l.Text), Actions: actions, Drop: want.Drop}
		if g, w := names.Explain(got), names.Explain(want); g != w {
			b.t.Errorf("%s: the switch explains %s actions=%s as\n  %s\nnot as\n  %s", s.name, l.Text, l.Actions, g, w)
		}
		if !slices.Equal(sorted(got.Match), sorted(want.Match)) {
			b.t.Errorf("%s: the switch prints the match of %s as %s", s.name, want, l.Text)
		}
	}
	if seen != d.Len() {
		b.t.Errorf("%s: %d flows on the switch, want %d", s.name, seen, d.Len())
	}
}

func sorted(m flows.Match) []string {
	var out []string
	for _, f := range m {
		out = append(out, f.String())
	}
	slices.Sort(out)
	return out
}

// TestForeignFlowsAreRemovedAndMissingOnesRestored lets somebody else work on the bridge.
func TestForeignFlowsAreRemovedAndMissingOnesRestored(t *testing.T) {
	b := startBridge(t)
	d := desired(t, readScenario(t, "testdata/services-dual.txtar").world)
	b.become(d)
	first, group := d.Flows()[0], d.Groups()[0]
	for _, meddling := range []struct{ what, bundle string }{
		{"a foreign flow", "flow add cookie=0xdead,table=7,priority=3,ip actions=drop"},
		{"a flow without a cookie", "flow add table=0,priority=65000 actions=NORMAL"},
		{"two flows with one cookie of ours", fmt.Sprintf("flow add cookie=%#x,table=0,priority=77,ip actions=drop", first.Cookie)},
		{"one of ours is gone", fmt.Sprintf("flow delete cookie=%#x/-1", first.Cookie)},
		{"one of ours is overwritten", strings.Replace("flow add "+first.Spec(), "flow add ", "flow add cookie=0xbad,", 1)},
		{"one of ours stands at another table", fmt.Sprintf("flow delete cookie=%#[1]x/-1\nflow add cookie=%#[1]x,table=3,priority=100,in_port=1 actions=drop", first.Cookie)},
		{"one of ours does something else", strings.Replace("flow add "+first.String(), "actions="+first.Actions.String(), "actions=output:7", 1)},
		{"all are gone", "flow delete cookie=0/0"},
		{"a foreign group", "group add_or_mod group_id=9,type=select,bucket=weight:1,actions=output:7"},
		{"a group of ours leads elsewhere", fmt.Sprintf("group add_or_mod group_id=%d,type=select,selection_method=dp_hash,bucket=weight:1,actions=output:7", group.ID)},
		{"a group of ours is gone, and its flows with it", fmt.Sprintf("group delete group_id=%d", group.ID)},
		{"all groups are gone", "group delete group_id=4294967292"}, // OFPG_ALL
	} {
		if err := b.sw.Apply(b.ctx, meddling.bundle); err != nil {
			t.Fatalf("%s: %v", meddling.what, err)
		}
		if b.become(d).Empty() {
			t.Errorf("%s was not noticed", meddling.what)
		}
		if again := b.diff(d); !again.Empty() {
			t.Errorf("%s was not repaired: %d to add, %d to delete", meddling.what, len(again.Add), len(again.Delete))
		}
	}
}
