package attach

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/ovsd"
)

// realOVSDB is a private Open vSwitch with a bridge.
func realOVSDB(t testing.TB, c ovsd.Config) *ovs.DB {
	t.Helper()
	o := ovsd.ForTest(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: o.Endpoint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if _, err := db.EnsureBridge(ctx, ovs.BridgeSpec{Name: bridge, DatapathType: "netdev", ExternalIDs: map[string]string{"owner": "twill"}}); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestRandomOperationsOnARealOVSDBLeakNothingAndDuplicateNothing(t *testing.T) {
	n := newNode(t, "198.18.0.0/27", "2001:db8::/64")
	db := realOVSDB(t, ovsd.Config{Dummy: true})
	g := &game{
		T: t, n: n, ports: db, links: n, most: 16,
		netns: func(string) *os.File { return n.netns }, vanish: n.vanish, carried: n.carried,
	}
	g.play(1000)
	if left := db.Ports(bridge); len(left) != 1 {
		t.Errorf("ports left: %v", left)
	}
}

// sandboxes are real network namespaces by the container's ID.
type sandboxes map[string]sandbox

type sandbox struct {
	space ns.NetNS
	file  *os.File // as the runtime hands it over
}

func (s sandboxes) make(t *testing.T, id string) *os.File {
	t.Helper()
	space, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(space.Path())
	if err != nil {
		t.Fatal(err)
	}
	s[id] = sandbox{space, f}
	return f
}

func (s sandboxes) remove(t *testing.T, id string) {
	t.Helper()
	if box, ok := s[id]; ok {
		delete(s, id)
		if err := errors.Join(box.file.Close(), box.space.Close(), testutils.UnmountNS(box.space)); err != nil {
			t.Error(err)
		}
	}
}

// carried are the addresses that interfaces in the sandboxes have.
func (s sandboxes) carried(t *testing.T) map[string][]netip.Addr {
	t.Helper()
	out := map[string][]netip.Addr{}
	for id, box := range s {
		err := box.space.Do(func(ns.NetNS) error {
			for _, ifName := range []string{"eth0", "net1"} {
				l, err := netlink.LinkByName(ifName)
				if errors.As(err, new(netlink.LinkNotFoundError)) {
					continue
				}
				if err != nil {
					return err
				}
				name := linkName(id, ifName)
				out[name] = []netip.Addr{}
				addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
				if err != nil {
					return err
				}
				for _, a := range addresses {
					if addr, _ := netip.AddrFromSlice(a.IP); !addr.IsLinkLocalUnicast() {
						out[name] = append(out[name], addr.Unmap())
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	return out
}

func TestRandomOperationsWithRealInterfacesLeakNothingAndDuplicateNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		ovsd.Missing(t, "network namespaces need root")
	}
	// The node is a network namespace, of this thread, which all of the game runs on.
	node, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	before, err := ns.GetCurrentNS()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	spaces := sandboxes{}
	t.Cleanup(func() {
		for id := range spaces {
			spaces.remove(t, id)
		}
		if err := errors.Join(before.Set(), before.Close(), node.Close(), testutils.UnmountNS(node)); err != nil {
			t.Error(err)
			return // the thread ends with the test's goroutine
		}
		runtime.UnlockOSThread()
	})
	db := realOVSDB(t, ovsd.Config{NetNS: node.Path()})
	if err := node.Set(); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, "198.18.0.0/27", "2001:db8::/64")
	g := &game{
		T: t, n: n, ports: db, links: &host.Links{}, most: 24,
		netns:   func(id string) *os.File { return spaces.make(t, id) },
		vanish:  func(id string) { spaces.remove(t, id) },
		carried: func() map[string][]netip.Addr { return spaces.carried(t) },
	}
	g.play(300)
	if left, err := host.Veths(LinkPrefix); len(left) > 0 || err != nil {
		t.Errorf("interfaces left: %v, %v", left, err)
	}
	if left := db.Ports(bridge); len(left) != 1 {
		t.Errorf("ports left: %v", left)
	}
}
