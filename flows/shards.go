package flows

import (
	"iter"
	"maps"
	"slices"
)

// shardCount divides the entries of Shards: a change copies one part in so many.
const shardCount = 256

// Shards is a map that never changes once it is part of a World. With makes another that shares with it all
// that is the same, and Differences compares two at a cost that follows what differs, not what they hold.
// The zero value is empty.
type Shards[V any] struct {
	parts [shardCount]*map[string]V
	n     int
}

// shardOf is the part that a key belongs to (FNV-1a).
func shardOf(key string) int {
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int((h ^ h>>16) % shardCount)
}

func (s *Shards[V]) part(i int) map[string]V {
	if s == nil || s.parts[i] == nil {
		return nil
	}
	return *s.parts[i]
}

// Get returns the entry of key.
func (s *Shards[V]) Get(key string) (V, bool) {
	v, ok := s.part(shardOf(key))[key]
	return v, ok
}

// Len is the number of entries.
func (s *Shards[V]) Len() int {
	if s == nil {
		return 0
	}
	return s.n
}

// All visits every entry, in no order.
func (s *Shards[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for i := range shardCount {
			for k, v := range s.part(i) {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Keys are all keys, sorted.
func (s *Shards[V]) Keys() []string {
	keys := make([]string, 0, s.Len())
	for k := range s.All() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// With returns a copy in which the entries of put are set and those of gone are not there.
func (s *Shards[V]) With(put map[string]V, gone []string) *Shards[V] {
	if s != nil && len(put) == 0 && len(gone) == 0 {
		return s
	}
	out := &Shards[V]{n: s.Len()}
	if s != nil {
		out.parts = s.parts
	}
	var own [shardCount]bool
	part := func(key string) map[string]V {
		i := shardOf(key)
		if !own[i] {
			own[i] = true
			m := maps.Clone(out.part(i))
			if m == nil {
				m = map[string]V{}
			}
			out.parts[i] = &m
		}
		return *out.parts[i]
	}
	for k, v := range put {
		m := part(k)
		if _, had := m[k]; !had {
			out.n++
		}
		m[k] = v
	}
	for _, k := range gone {
		m := part(k)
		if _, had := m[k]; had {
			out.n--
			delete(m, k)
		}
	}
	return out
}

// Differences calls f for each key whose entries are not the same in both. Either may be nil.
func Differences[V any](s, o *Shards[V], same func(a, b V) bool, f func(key string)) {
	if s == o {
		return
	}
	for i := range shardCount {
		if s != nil && o != nil && s.parts[i] == o.parts[i] {
			continue
		}
		a, b := s.part(i), o.part(i)
		for k, v := range a {
			if w, ok := b[k]; !ok || !same(v, w) {
				f(k)
			}
		}
		for k := range b {
			if _, ok := a[k]; !ok {
				f(k)
			}
		}
	}
}
