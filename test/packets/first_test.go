package packets

import (
	"fmt"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// Userspace OVS drops a packet to a tunnel peer whose MAC address it has to ask for first; the agents'
// probes have to have asked before any pod can.
func TestTheFirstPacketOfTheLabArrives(t *testing.T) {
	for i := range 5 {
		family := []string{"ipv4", "ipv6", "dual"}[i%3]
		t.Run(fmt.Sprintf("lab %d, %s", i, family), func(t *testing.T) {
			l := labtest.Up(t, lab.Options{Nodes: 2, Config: lab.Config{IPFamily: family}})
			b := addPod(t, l, "b@node-2")
			mustPing(t, l, addPod(t, l, "a@node-1"), b)
		})
	}
}

func TestTheFirstPacketOfEveryPodArrives(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 3})
	near, far := addPod(t, l, "near@node-1"), addPod(t, l, "far@node-2")
	third := addPod(t, l, "third@node-3")
	for i := range 20 {
		fresh := addPod(t, l, fmt.Sprintf("fresh%d@node-1", i))
		for _, to := range []lab.Pod{far, near, third} {
			mustPing(t, l, fresh, to)
		}
		// And the first that is sent to a fresh one.
		mustPing(t, l, far, addPod(t, l, fmt.Sprintf("goal%d@node-1", i)))
	}
}

func TestTheFirstPacketToANewNodeArrives(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 1})
	a := addPod(t, l, "a@node-1")
	for range 2 {
		n, err := l.AddNode(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		fresh := addPod(t, l, "on"+n.Name+"@"+n.Name)
		mustPing(t, l, a, fresh)
		mustPing(t, l, fresh, a)
	}
}
