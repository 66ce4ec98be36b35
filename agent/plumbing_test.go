package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/agent/attach"
	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/cni"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// madeLinks remembers which links were made; a dummy Open vSwitch needs none.
type madeLinks struct{ names []string }

func (l *madeLinks) AddVeth(_ context.Context, v host.Veth, there func()) error {
	l.names = append(l.names, v.Host)
	there()
	return nil
}
func (l *madeLinks) DeleteVeth(string) error        { return nil }
func (l *madeLinks) Seal(...string) error           { return nil }
func (l *madeLinks) CheckVeth(host.Veth) []string   { return nil }
func (l *madeLinks) Veths(string) ([]string, error) { return slices.Clone(l.names), nil }

type noFlows struct{}

func (noFlows) Apply(context.Context, ...flows.Owner) error { return nil }

func TestAPodsPortThatSomebodyDeletedComesBackEvenWithTheWholeBridge(t *testing.T) {
	ctx, o, db := dummyOVS(t)

	log, hook := test.NewNullLogger()
	links := &madeLinks{}
	pods := attach.New(attach.Config{
		NodeName: "node-1", Bridge: "br-twill", Ports: db, Links: links, Flows: noFlows{}, Log: log,
		PodCIDRs: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")} },
		MTU:      func() int { return 1450 }, RouterMAC: flows.RouterMAC(), Ready: func() error { return nil }, Clock: time.Now,
	})
	done := 0
	p := newPlumbing(&plumbing{
		cfg: &Config{Bridge: "br-twill", Gateway: "twill0", DatapathType: "netdev"}, db: db, log: log, meter: newMetrics(),
		repair: pods.Repair, largestPod: pods.LargestMTU, done: func(string) { done++ },
		set: settings{tunnelType: flows.Geneve, tunnelPort: 6081},
	})
	p.underlay.Address, p.mtu = netip.MustParseAddr("198.51.100.1"), 1450
	look := func() {
		t.Helper()
		if err := p.pass(ctx, "ovsdb", p.ensureBridge, false); err != nil {
			t.Fatal(err)
		}
	}
	look()
	netns, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	if _, err := pods.Add(ctx, &cni.Request{ContainerID: "sandbox-1", IfName: "eth0"}, netns); err != nil {
		t.Fatal(err)
	}
	port := func() ovs.Port {
		all := db.Ports("br-twill")
		i := slices.IndexFunc(all, func(p ovs.Port) bool { return slices.Contains(links.names, p.Name) })
		if i < 0 {
			return ovs.Port{}
		}
		return all[i]
	}
	before := port()
	look()
	for _, somebody := range [][]string{{"del-port", "br-twill", before.Name}, {"del-br", "br-twill"}} {
		if _, err := o.Run(ctx, "ovs-vsctl", append([]string{"--timeout=10"}, somebody...)...); err != nil {
			t.Fatal(err)
		}
		for port().Name != "" { // until our copy of the rows shows it
			select {
			case <-db.Changed():
			case <-ctx.Done():
				t.Fatal("the deletion was not seen")
			}
		}
		told := done
		hook.Reset()
		look()
		back, err := db.WaitPort(ctx, "br-twill", before.Name)
		if err != nil || back.OFPort != before.OFPort || back.ExternalIDs["twill-addresses"] != "198.18.0.2" {
			t.Errorf("after %v: %+v, %v; want %+v", somebody, back, err, before)
		}
		if e := hook.LastEntry(); e == nil || e.Level != logrus.WarnLevel || e.Message != "put back port "+before.Name+" of pod _/sandbox-1" || done == told {
			t.Errorf("after %v: logged %+v, told the loop %d times", somebody, e, done-told)
		}
	}
}

func TestALookThatTakesTooLongSaysWhy(t *testing.T) {
	log, _ := test.NewNullLogger()
	p := newPlumbing(&plumbing{log: log, meter: newMetrics(), done: func(string) {}})
	slow := func(context.Context) ([]string, error) {
		return nil, fmt.Errorf("port x: %w", context.DeadlineExceeded)
	}
	err := p.pass(t.Context(), "tick", slow, false)
	if want := "not done within 20s: Open vSwitch does not answer, or the node has no processor to spare: port x"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	if _, _, now := p.now(); !errors.Is(now, context.DeadlineExceeded) {
		t.Errorf("what the node is not ready for: %v", now)
	}
}
