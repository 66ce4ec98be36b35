package flows

import (
	"fmt"
	"strconv"
	"strings"
)

// Whoever has no endpoint yet gets one by a hash of its address and of the round, a number that the agent changes from
// time to time: so all connections of a client that come at once agree, before anything is remembered, and a client whose
// time is out is chosen for anew. One flow says which round it is, however many Services have an affinity: what a look into
// the table sticky comes to where nothing is remembered.

// AffinityOwner owns that flow.
const AffinityOwner Owner = "affinity"

// affinityRound is the register that holds the round.
const affinityRound = "reg13"

func affinityFlows(w *World) []Flow {
	if w.Services == nil {
		return nil
	}
	round := "0"
	if w.Round != 0 {
		round = fmt.Sprintf("%#x", w.Round)
	}
	p := builder{owner: AffinityOwner}
	p.add(Sticky, 0, nil, set(round, affinityRound))
	return p.flows
}

// RoundOf reads the round off the actions of that flow, as Open vSwitch prints them; false for another flow.
func RoundOf(t Table, actions string) (uint32, bool) {
	text, ok := strings.CutSuffix(strings.TrimPrefix(actions, "set_field:"), "->"+affinityRound)
	if t != Sticky || !ok {
		return 0, false
	}
	round, err := strconv.ParseUint(text, 0, 32)
	return uint32(round), err == nil
}

// ShortestAffinity is the shortest time in seconds that a client stays with an endpoint, of all Services; 0 where none has an
// affinity.
func (s *Services) ShortestAffinity() int {
	if s == nil {
		return 0
	}
	return s.shortest
}

// shortestAffinity is the least of those that some port has.
func (x *ServiceIndex) shortestAffinity() (least int) {
	for seconds := range x.affinities.n {
		if least == 0 || seconds < least {
			least = seconds
		}
	}
	return least
}
