package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// ids gives names numbers that follow from the name alone, so that a restart finds the same. Two names that
// hash to one number are told apart by order: the smaller keeps it, the other takes its next.
type ids struct {
	mask, set uint32
	holder    map[uint32]string
	of        map[string]uint32
	displaced map[string]bool // those that do not have their first number
	hash      func(string) uint32
}

func newIDs(mask, set uint32) *ids {
	return &ids{mask: mask, set: set, holder: map[uint32]string{}, of: map[string]uint32{}, displaced: map[string]bool{}, hash: hash32}
}

func hash32(s string) uint32 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint32(sum[:4])
}

// attempt is the n-th number that a name asks for; never 0, never the bare bits of set.
func (x *ids) attempt(name string, n int) uint32 {
	text := name
	if n > 0 {
		text = fmt.Sprintf("%s#%d", name, n)
	}
	v := x.hash(text) & x.mask
	if v == 0 {
		v = 1
	}
	return v | x.set
}

// get returns the number of a name, and who has another number than before because of it.
func (x *ids) get(name string) (id uint32, moved []string) {
	if id, ok := x.of[name]; ok {
		return id, nil
	}
	moved = x.place(name)
	return x.of[name], moved
}

func (x *ids) place(name string) (moved []string) {
	for n := 0; ; n++ {
		id := x.attempt(name, n)
		other, taken := x.holder[id]
		if taken && other < name {
			continue
		}
		x.holder[id], x.of[name] = name, id
		if n > 0 {
			x.displaced[name] = true
		} else {
			delete(x.displaced, name)
		}
		if taken {
			return append(x.place(other), other)
		}
		return moved
	}
}

// free gives a number back, and says who has another number because of it.
func (x *ids) free(name string) (moved []string) {
	id, ok := x.of[name]
	if !ok {
		return nil
	}
	delete(x.of, name)
	delete(x.holder, id)
	delete(x.displaced, name)
	before := map[string]uint32{}
	for other := range x.displaced {
		before[other] = x.of[other]
		delete(x.holder, x.of[other])
		delete(x.of, other)
	}
	for other := range before {
		x.place(other)
	}
	for other, was := range before {
		if x.of[other] != was {
			moved = append(moved, other)
		}
	}
	return moved
}
