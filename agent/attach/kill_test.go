package attach

import (
	"fmt"
	"net/netip"
	"testing"
)

// check fails when something on the node contradicts itself: two rows or two interfaces with one address,
// a row without a veth or the other way round.
func (n *node) check(t testing.TB, when string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	rows, links := map[netip.Addr]string{}, map[netip.Addr]string{}
	for name, p := range n.rows {
		for _, a := range addressesOf(p) {
			if other, taken := rows[a]; taken {
				t.Errorf("%s: rows %s and %s both lease %s", when, name, other, a)
			}
			rows[a] = name
		}
		if _, ok := n.links[name]; !ok {
			t.Errorf("%s: row %s has no veth", when, name)
		}
	}
	for name, v := range n.links {
		for _, a := range v.Addresses {
			if other, taken := links[a]; taken {
				t.Errorf("%s: links %s and %s both carry %s", when, name, other, a)
			}
			links[a] = name
		}
		if _, ok := n.rows[name]; !ok {
			t.Errorf("%s: veth %s has no row", when, name)
		}
	}
}

// every step of ADD and of DEL, before and after its effect.
var allAddSteps = []string{"AddVeth", "done AddVeth", "StartPort", "done StartPort", "Apply", "done Apply", "WaitPort", "done WaitPort"}
var allDelSteps = []string{"Apply", "done Apply", "DeletePorts", "done DeletePorts", "DeleteVeth", "done DeleteVeth"}

func TestAKillAtAnyStepOfADDOrDELLeaksNothing(t *testing.T) {
	for _, c := range []struct {
		command string
		steps   []string
	}{{"ADD", allAddSteps}, {"DEL", allDelSteps}} {
		for _, at := range c.steps {
			for _, next := range []string{"DEL", "GC", "ADD"} { // what the runtime does after the restart
				when := fmt.Sprintf("%s killed at %q, then %s", c.command, at, next)
				n := newNode(t, "198.18.0.0/24")
				a := n.start()
				a.add(t, pod(1))
				if c.command == "DEL" {
					a.add(t, pod(2))
				}
				a.onStep(func(step string) error {
					if step == at {
						return a.kill()
					}
					return nil
				})
				var err error
				if c.command == "ADD" {
					_, err = a.Add(t.Context(), pod(2), n.netns)
				} else {
					err = a.Del(t.Context(), pod(2))
				}
				if err == nil && at != "done DeleteVeth" {
					t.Errorf("%s: the command of the killed agent succeeded", when)
				}

				b := n.start()
				b.adopt(t)
				if err := b.Apply(t.Context()); err != nil { // as every agent does when it starts
					t.Fatal(err)
				}
				n.check(t, when+", adopted")
				b.add(t, pod(3))
				n.check(t, when+", another pod added")
				switch next {
				case "DEL":
					b.del(t, pod(2))
				case "GC":
					if err := b.GC(t.Context(), valid("twill", pod(1), pod(3))); err != nil {
						t.Fatal(err)
					}
				case "ADD":
					r := b.add(t, pod(2))
					n.check(t, when)
					if err := b.Check(t.Context(), withPrevious(t, pod(2), r), n.netns); err != nil {
						t.Errorf("%s: CHECK: %v", when, err)
					}
					b.del(t, pod(2))
				}
				n.check(t, when)
				expect(t, when+": rows, links, owners of flows", fmt.Sprint(len(n.rows), len(n.links), len(n.flows)), "2 2 2")
				expect(t, when+": addresses in use", b.Usage().Ranges[0].Used, 2)
			}
		}
	}
}
