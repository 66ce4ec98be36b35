package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// refusals are the policies whose flows Open vSwitch would not take. Such a policy is taken for one that cannot
// be used: the pods that it selects are closed, everybody else gets what is wanted. It is tried again once the object
// changes, and by itself after a while: a table that was full may have room.
type refusals struct {
	clock func() time.Time

	mu   sync.Mutex
	list map[string]*refusal // by the policy's owner
	// pods are those whose own flows were refused.
	pods func() []flows.Owner
}

// refusal is what Open vSwitch said about one policy.
type refusal struct {
	object any // as it was then
	reason string
	tries  int
	until  time.Time // the zero Time while it is being tried
}

// firstRetry is how long a refused policy waits before it is tried again, twice as long each time up to lastRetry.
const (
	firstRetry = time.Minute
	lastRetry  = 16 * time.Minute
)

func newRefusals(clock func() time.Time) *refusals {
	return &refusals{clock: clock, list: map[string]*refusal{}}
}

// add notes a refusal; false if the policy is out of force already, so that something else has to be done.
func (r *refusals) add(owner string, object any, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.list[owner]
	switch {
	case x == nil || x.object != object:
		x = &refusal{object: object}
		r.list[owner] = x
	case !x.until.IsZero():
		return false
	}
	x.reason = cmp.Or(x.reason, reason) // the first: which flow does not fit depends on what else is there
	x.until = r.clock().Add(min(lastRetry, firstRetry<<min(x.tries, 8)))
	x.tries++
	return true
}

// of is the object of a policy as it is to be used.
func (r *refusals) of(owner string, object any) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.list[owner]
	p, ok := object.(*policy.Policy)
	if x != nil && x.object != object {
		delete(r.list, owner) // another object, or none: it may be taken
		x = nil
	}
	if x == nil || !ok || x.until.IsZero() {
		return object
	}
	broken := *p
	broken.Ingress, broken.Egress, broken.Broken = nil, nil, x.reason
	return &broken
}

// due lists those that have waited long enough, and has them tried.
func (r *refusals) due() (owners []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for owner, x := range r.list {
		if !x.until.IsZero() && !x.until.After(r.clock()) {
			x.until = time.Time{}
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return owners
}

// Describe implements prometheus.Collector.
func (r *refusals) Describe(ch chan<- *prometheus.Desc) { ch <- refusedDesc() }

func refusedDesc() *prometheus.Desc {
	return prometheus.NewDesc("twill_openflow_refused", "1 for each policy, or pod of this node, whose flows Open vSwitch refuses; a policy's pods, or the pod, are closed.", []string{"object"}, nil)
}

// Collect implements prometheus.Collector.
func (r *refusals) Collect(ch chan<- prometheus.Metric) {
	pods := r.pods()
	r.mu.Lock()
	defer r.mu.Unlock()
	for owner, x := range r.list {
		if !x.until.IsZero() {
			ch <- prometheus.MustNewConstMetric(refusedDesc(), prometheus.GaugeValue, 1, owner)
		}
	}
	for _, owner := range pods {
		ch <- prometheus.MustNewConstMetric(refusedDesc(), prometheus.GaugeValue, 1, string(owner))
	}
}

// refused is told by the loop that Open vSwitch would not take a flow of this owner. It is false where nothing can be
// left out: then the whole bundle waits.
func (a *Agent) refused(before, now *flows.World, f flows.Flow, reason string) bool {
	if f.Owner.Kind() == "pod" {
		words := strings.SplitN(string(f.Owner), "/", 4)
		a.source.Event(source.Ref{Key: source.Key{Kind: "Pod", Namespace: words[1], Name: words[2]}}, source.EventWarning, "TwillFlowsRefused",
			"Open vSwitch refuses a flow of the pod, so that it has none and neither sends nor receives: "+reason)
		return true
	}
	left := false
	for _, owner := range flows.PoliciesBehind(before, now, f.Owner) {
		left = a.policies.refuse(owner, fmt.Sprintf("Open vSwitch refuses a flow of %s: %s", f.Owner, reason)) || left
	}
	return left
}

// tryRefused tries again what was refused a while ago.
func (a *Agent) tryRefused(ctx context.Context) {
	tick := time.NewTicker(firstRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			policies, pods := a.policies.tryAgain(), a.loop.tryAgain()
			if policies || pods {
				a.loop.kick("what was refused is tried again")
			}
		}
	}
}

// setAside takes out of the way what a bundle was refused for, if that is possible; then the pass is worth repeating.
func (l *loop) setAside(err error) bool {
	var e *ovs.Error
	if !errors.As(err, &e) || l.refusedFlow == nil {
		return false
	}
	cookie, named := e.Cookie()
	l.state.Lock()
	f, ours := l.desired.Flow(cookie)
	before, now := l.last, l.compiled
	l.state.Unlock()
	if !named || !ours || !l.refusedFlow(before, now, f, e.Reason) {
		return false
	}
	l.log.WithField("owner", f.Owner).WithError(err).Error("refused by Open vSwitch; everything else is applied without it")
	if f.Owner.Kind() != "pod" {
		return true
	}
	l.state.Lock()
	defer l.state.Unlock()
	l.refused[f.Owner] = fmt.Errorf("%s has no flows: %w", f.Owner, err)
	l.without[f.Owner] = true
	_, _ = l.desired.Replace(map[flows.Owner][]flows.Flow{f.Owner: nil}) // the next pass reads the table back
	return true
}

// tryAgain has pods whose flows were refused compiled again; false if there are none.
func (l *loop) tryAgain() bool {
	l.state.Lock()
	defer l.state.Unlock()
	for o := range l.without {
		l.again[o] = true
	}
	return len(l.without) > 0
}

// refusedOf says what of these owners Open vSwitch has refused.
func (l *loop) refusedOf(owners []flows.Owner) error {
	l.state.Lock()
	defer l.state.Unlock()
	for _, o := range owners {
		if l.without[o] {
			return l.refused[o]
		}
	}
	return nil
}

// withoutFlows are the pods whose flows were refused.
func (l *loop) withoutFlows() []flows.Owner {
	l.state.Lock()
	defer l.state.Unlock()
	return slices.Sorted(maps.Keys(l.without))
}
