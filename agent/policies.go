package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// policies keeps what NetworkPolicies come to on this node. Whatever the source says has changed is noted, and
// looked at once by the next pass of the loop: that costs what the change costs, not what the cluster holds.
type policies struct {
	log       logrus.FieldLogger
	source    source.Source
	manifests bool

	mu      sync.Mutex
	pending map[source.Key]bool
	news    chan struct{} // closed, and another one made, whenever a pod has changed

	refusals *refusals

	work  sync.Mutex // guards what follows
	index *policy.Index
}

func newPolicies(log logrus.FieldLogger) *policies {
	return &policies{log: log, pending: map[source.Key]bool{}, news: make(chan struct{}), refusals: newRefusals(time.Now), index: policy.NewIndex()}
}

// follow says where objects come from. A directory of manifests may do without Pods.
func (p *policies) follow(s source.Source, manifests bool) { p.source, p.manifests = s, manifests }

// note remembers that an object has changed.
func (p *policies) note(key source.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(source.PolicyKinds(), key.Kind) {
		p.pending[key] = true
	}
	if key.Kind == "Pod" {
		close(p.news)
		p.news = make(chan struct{})
	}
}

// update takes in what has changed and returns what policies come to for these pods.
func (p *policies) update(pods map[flows.Owner][]flows.Attachment) *flows.Policy {
	p.mu.Lock()
	pending := p.pending
	p.pending = map[source.Key]bool{}
	p.mu.Unlock()

	p.work.Lock()
	defer p.work.Unlock()
	for key := range pending {
		source.Tell(p.index, key, p.refusals.of(policyOwner(key), p.source.Get(key)))
	}
	local := map[string]policy.Local{}
	for _, list := range pods {
		for _, a := range list {
			key := a.Namespace + "/" + a.Pod
			// While an old sandbox of the pod waits for its DEL, the incarnation that there is an object of counts.
			if l, again := local[key]; again {
				if v, ok := p.source.Get(source.Key{Kind: "Pod", Namespace: a.Namespace, Name: a.Pod}).(*policy.Pod); ok && v.Is(l.UID) {
					continue
				}
			}
			local[key] = policy.Local{Namespace: a.Namespace, Pod: a.Pod, UID: a.UID, Addresses: a.Addresses}
		}
	}
	p.index.SetLocal(local)
	return p.index.Policy()
}

// knownWithin is how long ADD waits for the pod's object: the kubelet has it, so it is on its way.
const knownWithin = 5 * time.Second

// aloneWithin is how long it waits where a directory of manifests has no Pods and no policies at all: until it
// has been read after whatever was written together with the pod.
const aloneWithin = time.Second

// waitFor returns once the pod's object is known. Its policies are known then, too: they are older.
func (p *policies) waitFor(ctx context.Context, namespace, pod, uid string) error {
	ctx, cancel := context.WithTimeout(ctx, knownWithin)
	defer cancel()
	alone := time.NewTimer(aloneWithin)
	defer alone.Stop()
	for {
		p.mu.Lock()
		news := p.news
		p.mu.Unlock()
		if v, ok := p.source.Get(source.Key{Kind: "Pod", Namespace: namespace, Name: pod}).(*policy.Pod); ok && v.Is(uid) {
			return nil
		}
		select {
		case <-news:
		case <-alone.C:
			if p.manifests && len(p.source.Keys("Pod"))+len(p.source.Keys("NetworkPolicy"))+len(p.source.Keys("ClusterNetworkPolicy")) == 0 {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("its object (UID %s) is not known to the agent after %s, so neither are its policies: is the watch of Pods alive? Trying again helps as soon as it is: %w",
				uid, knownWithin, ctx.Err())
		}
	}
}

// refuse takes a policy out of force because Open vSwitch would not take a flow of it; false if it is already.
func (p *policies) refuse(owner, reason string) bool {
	key := policyRef(owner).Key
	if !p.refusals.add(owner, p.source.Get(key), reason) {
		return false
	}
	p.note(key)
	return true
}

// tryAgain puts policies that were refused a while ago back in force; false if there are none.
func (p *policies) tryAgain() bool {
	due := p.refusals.due()
	for _, owner := range due {
		p.note(policyRef(owner).Key)
	}
	return len(due) > 0
}
