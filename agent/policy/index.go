package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/flows"
)

// Local is a pod of this node, as its port row tells it.
type Local struct {
	Namespace, Pod string
	// UID is what the runtime said; empty if it said nothing.
	UID string
	// Addresses are those of its port row: known before any status tells them, and true for certain.
	Addresses []netip.Addr
}

func (l Local) equal(o Local) bool {
	return l.Namespace == o.Namespace && l.Pod == o.Pod && l.UID == o.UID && slices.Equal(l.Addresses, o.Addresses)
}

// Index resolves policies. Its methods must not be called from several goroutines at once.
type Index struct {
	pods       map[string]*member
	namespaces map[string]*space
	nodes      map[string]*Node
	policies   map[string]*policyState
	cluster    map[string]*policyState // those without a namespace
	local      map[string]Local
	selected   map[string]map[*policyState]bool // the policies of a pod of this node

	holders   map[netip.Addr]*member   // who has an address
	contested map[netip.Addr][]*member // the others that claim it, too

	selectors map[string]*selector
	wide      map[*selector]bool // those that look at several namespaces
	keys      map[string]int     // labels that wide selectors mention
	names     map[string]int     // named ports that rules mention

	identities, conjunctions *ids
	byIdentity               map[uint32]*group
	byConjunction            map[string]*ruleState // by the name of the ID
	plain                    map[flows.Condition]map[flows.Part]int
	viaNodes                 map[*ruleState]bool // rules that speak of nodes

	dirty dirt
	out   *flows.Policy
}

// dirt is what has to be looked at again.
type dirt struct {
	conditions map[flows.Condition]bool
	peers      map[string]bool
	local      map[string]bool // whom do policies select?
	isolation  map[string]bool // what do they do to it?
	policies   map[string]bool
	rules      map[*ruleState]bool
	owners     map[string]bool
}

func newDirt() dirt {
	return dirt{
		conditions: map[flows.Condition]bool{}, peers: map[string]bool{}, local: map[string]bool{}, isolation: map[string]bool{},
		policies: map[string]bool{}, rules: map[*ruleState]bool{}, owners: map[string]bool{},
	}
}

// NewIndex returns an Index that knows nothing.
func NewIndex() *Index {
	return &Index{
		pods: map[string]*member{}, namespaces: map[string]*space{}, nodes: map[string]*Node{},
		policies: map[string]*policyState{}, cluster: map[string]*policyState{}, local: map[string]Local{}, selected: map[string]map[*policyState]bool{},
		holders: map[netip.Addr]*member{}, contested: map[netip.Addr][]*member{},
		selectors: map[string]*selector{}, wide: map[*selector]bool{}, keys: map[string]int{}, names: map[string]int{},
		identities: newIDs(0x7fffffff, 1<<31), conjunctions: newIDs(0x7fffffff, 0),
		byIdentity: map[uint32]*group{}, byConjunction: map[string]*ruleState{},
		plain: map[flows.Condition]map[flows.Part]int{}, viaNodes: map[*ruleState]bool{},
		dirty: newDirt(), out: &flows.Policy{Failures: map[string]string{}},
	}
}

// SetNamespace takes over a Namespace; nil means that there is none.
func (ix *Index) SetNamespace(name string, n *Namespace) {
	s := ix.space(name)
	before := s.labels
	s.known = n != nil
	s.labels = Labels(metadataName + "=" + name)
	if n != nil {
		s.labels = n.Labels
	}
	for key := range s.local {
		ix.dirty.local[key] = true
	}
	if before != s.labels {
		for _, g := range s.groups {
			ix.rematch(g)
		}
	}
	ix.drop(s)
}

// metadataName is the label that the API server gives every Namespace (KEP-2161).
const metadataName = "kubernetes.io/metadata.name"

// SetNode takes over a Node; nil means that there is none.
func (ix *Index) SetNode(name string, n *Node) {
	old := ix.nodes[name]
	if n == nil {
		delete(ix.nodes, name)
	} else {
		ix.nodes[name] = n
	}
	if old == nil || n == nil || old.Labels != n.Labels || !slices.Equal(old.Addresses, n.Addresses) {
		for r := range ix.viaNodes {
			ix.dirty.rules[r] = true
		}
	}
}

// SetPod takes over a Pod of the cluster; nil means that there is none.
func (ix *Index) SetPod(key string, p *Pod) {
	m := ix.pods[key]
	if p == nil {
		if m != nil {
			ix.addresses(m, nil)
			ix.leave(m)
			delete(ix.pods, key)
			s := ix.space(m.Namespace)
			delete(s.pods, m)
			ix.drop(s)
		}
	} else {
		if m == nil {
			m = &member{Pod: p}
			ix.pods[key] = m
			ix.space(p.Namespace).pods[m] = true
		}
		had := m.Addresses
		m.Pod = &Pod{}
		*m.Pod = *p
		m.Addresses = had
		m.declared = p.Addresses
		ix.addresses(m, ix.effective(m))
		ix.regroup(m)
	}
	ix.dirty.peers[key] = true
	if _, here := ix.local[key]; here {
		ix.dirty.local[key] = true
	}
}

// SetLocal takes over the pods of this node, by namespace/name.
func (ix *Index) SetLocal(local map[string]Local) {
	for key, l := range ix.local {
		if now, ok := local[key]; !ok || !now.equal(l) {
			ix.dirty.local[key] = true
			if !ok {
				s := ix.space(l.Namespace)
				delete(s.local, key)
				ix.drop(s)
			}
		}
	}
	for key, l := range local {
		if was, ok := ix.local[key]; !ok || !was.equal(l) {
			ix.dirty.local[key] = true
			ix.space(l.Namespace).local[key] = true
		}
	}
	before := ix.local
	ix.local = maps.Clone(local)
	for _, side := range []map[string]Local{before, local} {
		for key := range side {
			if m := ix.pods[key]; m != nil && !slices.Equal(before[key].Addresses, local[key].Addresses) {
				ix.addresses(m, ix.effective(m))
			}
		}
	}
}

// effective are the addresses that count for a pod: those of its port row, if it is here, else those of its object.
func (ix *Index) effective(m *member) []netip.Addr {
	if l, here := ix.local[m.Key()]; here && len(l.Addresses) > 0 && m.Is(l.UID) {
		return l.Addresses
	}
	return m.declared
}

// SetPolicy takes over a policy by its Owner; nil means that there is none.
func (ix *Index) SetPolicy(owner string, p *Policy) {
	ps := ix.policies[owner]
	if ps != nil {
		ix.end(ps)
		for key := range ps.local {
			ix.unselect(ps, key)
		}
		delete(ix.policies, owner)
		delete(ix.cluster, owner)
		if ps.Namespace != "" {
			s := ix.space(ps.Namespace)
			delete(s.policies, owner)
			ix.drop(s)
		}
	}
	ix.dirty.policies[owner] = true
	if p == nil {
		ix.ranks(ps)
		ix.suspects(ps.namespace())
		return
	}
	before := ps
	ps = &policyState{Policy: p, owner: owner, local: map[string]bool{}}
	ix.policies[owner] = ps
	var near map[string]bool
	if p.Namespace == "" {
		ix.cluster[owner] = ps
	} else {
		s := ix.space(p.Namespace)
		s.policies[owner] = ps
		near = s.local
	}
	check := func(key string) {
		if m := ix.known(key); m == nil {
			ix.dirty.isolation[key] = true
		} else if ix.selects(p, m.Namespace, m.Labels) {
			ix.selectPod(ps, key)
		}
	}
	if p.Namespace != "" {
		for key := range near {
			check(key)
		}
	} else {
		for key := range ix.local {
			check(key)
		}
	}
	ix.ranks(before)
	ix.ranks(ps)
}

// suspects looks again at pods that nothing is known of, once a policy that might have selected them is gone.
func (ix *Index) suspects(namespace string) {
	for key, l := range ix.local {
		if (namespace == "" || l.Namespace == namespace) && ix.known(key) == nil {
			ix.dirty.isolation[key] = true
		}
	}
}

// known is the Pod object of a pod of this node, if it is of the same incarnation.
func (ix *Index) known(key string) *member {
	m, l := ix.pods[key], ix.local[key]
	if m == nil || !m.Is(l.UID) {
		return nil
	}
	return m
}

// Known is nil when the policies of a pod can be told; else it says what is missing. Call it after Policy.
func (ix *Index) Known(namespace, pod string) string {
	if i, ok := ix.out.Pods.Get(namespace + "/" + pod); ok {
		return i.Closed
	}
	return ""
}

// selects tells whether a policy selects a pod of this namespace with these labels.
func (ix *Index) selects(p *Policy, namespace string, labels Labels) bool {
	return ix.matches(p.Subject, namespace, labels)
}

func (ix *Index) matches(p Pods, namespace string, labels Labels) bool {
	if p.Namespace != "" && p.Namespace != namespace {
		return false
	}
	if p.Namespace == "" && !p.Namespaces.Matches(ix.space(namespace).labels) {
		return false
	}
	return p.Pods.Matches(labels)
}

// addresses gives a pod its addresses. Of several pods that claim one, a pod that stays has it before one that
// leaves, then the younger one: an address is used again once its former pod has ended.
func (ix *Index) addresses(m *member, now []netip.Addr) {
	was := m.Addresses
	m.Addresses = slices.Clone(now)
	touched := append(slices.Clone(was), now...)
	for _, a := range touched {
		claim := ix.contested[a]
		if h := ix.holders[a]; h != nil && !slices.Contains(claim, h) {
			claim = append(claim, h)
		}
		claim = slices.DeleteFunc(claim, func(x *member) bool { return x == m })
		if slices.Contains(now, a) {
			claim = append(claim, m)
		}
		for _, x := range claim {
			ix.dirty.peers[x.Key()] = true
		}
		slices.SortFunc(claim, younger)
		delete(ix.contested, a)
		if len(claim) == 0 {
			delete(ix.holders, a)
			continue
		}
		ix.holders[a] = claim[0]
		if len(claim) > 1 {
			ix.contested[a] = claim
		}
	}
}

func younger(a, b *member) int {
	switch {
	case a.Leaving != b.Leaving && a.Leaving:
		return 1
	case a.Leaving != b.Leaving:
		return -1
	case !a.Created.Equal(b.Created):
		return b.Created.Compare(a.Created)
	case a.Key() < b.Key():
		return -1
	}
	return 1
}
