package source

import (
	"cmp"
	"reflect"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/twill-net/twill/flows"
)

// store holds the converted objects of either source and finds out what really changed.
type store struct {
	log      logrus.FieldLogger
	onChange OnChange

	mu      sync.RWMutex
	entries map[string]map[Key]entry // by kind
	// services is what Services returned last; since are the Services and EndpointSlices that have changed after that.
	services ServiceKinds
	since    map[Key]bool
}

// entry is one object, or one file of which there is only something to complain about.
type entry struct {
	// value is nil if nothing of the object can be used.
	value    any
	problems []Problem
}

func newStore(log logrus.FieldLogger, onChange OnChange) *store {
	if onChange == nil {
		onChange = func(Key) {}
	}
	return &store{log: log, onChange: onChange, entries: map[string]map[Key]entry{}, since: map[Key]bool{}}
}

// newEntry converts an object. extra are Problems that the source itself has with it.
func newEntry(k kind, o object, where string, extra ...Problem) (Key, entry) {
	key := Key{Kind: k.Kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	e := entry{}
	if faults := validation.IsDNS1123Subdomain(key.Name); len(faults) > 0 {
		// Names become owners of flows and words in log lines: nothing else may get there.
		e.problems = []Problem{{Reason: "metadata.name is not a valid name: " + faults[0] + ". The object is not used."}}
	} else {
		e.value, e.problems = k.convert(o)
	}
	e.problems = append(e.problems, extra...)
	for i := range e.problems {
		e.problems[i].Key = key
		if e.problems[i].Where == "" {
			e.problems[i].Where = where
		}
	}
	return key, e
}

// set makes the entry of key say e. The zero entry removes it.
func (s *store) set(key Key, e entry) {
	s.mu.Lock()
	all := s.entries[key.Kind]
	if all == nil {
		all = map[Key]entry{}
		s.entries[key.Kind] = all
	}
	old := all[key]
	same := reflect.DeepEqual(old.value, e.value)
	if same {
		e.value = old.value // readers compare pointers
	} else if key.Kind == kindService || key.Kind == kindSlice {
		s.since[key] = true
	}
	if e.value == nil && len(e.problems) == 0 {
		delete(all, key)
	} else {
		all[key] = e
	}
	s.mu.Unlock()

	appeared, healed := subtract(e.problems, old.problems), subtract(old.problems, e.problems)
	for _, p := range appeared {
		s.log.WithField("object", key.String()).Warn(p.String())
	}
	for _, p := range healed {
		s.log.WithField("object", key.String()).Infof("Resolved: %s", p)
	}
	if len(appeared) > 0 || len(healed) > 0 || !same {
		s.onChange(key)
	}
}

// subtract returns the problems of a that b has not. Where they stand does not matter: an object that
// only moved within its file is not another one.
func subtract(a, b []Problem) (rest []Problem) {
	for _, p := range a {
		if !slices.ContainsFunc(b, func(q Problem) bool { return q.Key == p.Key && q.Reason == p.Reason }) {
			rest = append(rest, p)
		}
	}
	return rest
}

// Nodes implements Source.
func (s *store) Nodes() []flows.Node { return values[flows.Node](s, "Node") }

// Services implements Source.
func (s *store) Services() ServiceKinds {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services = ServiceKinds{
		Services: upToDate[*ServiceObject](s, s.services.Services, kindService),
		Slices:   upToDate[*SliceObject](s, s.services.Slices, kindSlice),
	}
	clear(s.since)
	return s.services
}

// upToDate brings the objects of a kind, as they were returned last, in step with the entries.
func upToDate[T any](s *store, was *flows.Shards[T], kind string) *flows.Shards[T] {
	put, gone := map[string]T{}, []string(nil)
	for key := range s.since {
		if key.Kind != kind {
			continue
		}
		name := key.Namespace + "/" + key.Name
		if v := s.entries[kind][key].value; v != nil {
			put[name] = v.(T)
		} else {
			gone = append(gone, name)
		}
	}
	return was.With(put, gone)
}

// Get implements Source.
func (s *store) Get(key Key) any {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[key.Kind][key].value
}

// Keys implements Source.
func (s *store) Keys(kind string) []Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.keys(kind)
}

func (s *store) keys(kind string) []Key {
	var keys []Key
	for key, e := range s.entries[kind] {
		if e.value != nil {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

// values are the usable objects of a kind, sorted by namespace and name.
func values[T any](s *store, kind string) []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	keys := s.keys(kind)
	list := make([]T, len(keys))
	for i, key := range keys {
		list[i] = s.entries[kind][key].value.(T)
	}
	return list
}

// Problems implements Source.
func (s *store) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []Problem
	for _, all := range s.entries {
		for _, e := range all {
			list = append(list, e.problems...)
		}
	}
	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(compareKeys(a.Key, b.Key), cmp.Compare(a.Where, b.Where), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}

// ProblemsOf implements Source.
func (s *store) ProblemsOf(key Key) []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.entries[key.Kind][key].problems)
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
