package openflow

import (
	"encoding/binary"
	"strings"
)

// Commands of OFPT_GROUP_MOD; the second is an extension of Open vSwitch.
const (
	groupCommandDelete   = 2
	groupCommandAddOrMod = 0x8000
)

const (
	groupSelect  = 1          // OFPGT_SELECT
	vendorNetron = 0x0000154d // Netronome, whose extension chooses the selection method
)

// groupAddOrMod is a select group:
//
//	group_id=N,type=select,selection_method=METHOD[,fields(FIELD[,FIELD])],bucket=bucket_id:N,weight:N,actions=…[,bucket=…]
func groupAddOrMod(text string) ([]byte, error) {
	head, rest, _ := strings.Cut(text, ",bucket=")
	var id uint32
	var method, by string
	kind := ""
	for _, word := range split(head) {
		var err error
		name, value, _ := strings.Cut(word, "=")
		switch {
		case name == "group_id":
			id, err = number[uint32](value)
		case name == "type":
			kind = value
		case name == "selection_method":
			method = value
		case strings.HasPrefix(word, "fields(") && strings.HasSuffix(word, ")"):
			by = word[len("fields(") : len(word)-1]
		default:
			err = unknown("word of a group", word)
		}
		if err != nil {
			return nil, err
		}
	}
	if kind != "select" || method == "" || len(method) > maxMethod {
		return nil, unknown("group", head)
	}
	var buckets []byte
	if rest != "" {
		for text := range strings.SplitSeq(rest, ",bucket=") {
			b, err := bucket(text)
			if err != nil {
				return nil, err
			}
			buckets = append(buckets, b...)
		}
	}
	selection, err := selectionMethod(method, by)
	if err != nil {
		return nil, err
	}
	return groupMod(groupCommandAddOrMod, groupSelect, id, buckets, selection), nil
}

func groupMod(command uint16, kind uint8, id uint32, buckets, properties []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, command)
	b = append(b, kind, 0)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint16(b, uint16(len(buckets)))
	b = append(b, 0, 0, 0xff, 0xff, 0xff, 0xff) // all buckets
	return Message(TypeGroupMod, 0, append(append(b, buckets...), properties...))
}

// bucket is bucket_id:N,weight:N,actions=….
func bucket(text string) ([]byte, error) {
	head, then, ok := strings.Cut(text, ",actions=")
	name, share, weighted := strings.Cut(head, ",weight:")
	digits, named := strings.CutPrefix(name, "bucket_id:")
	if !ok || !weighted || !named {
		return nil, unknown("bucket", text)
	}
	id, err := number[uint32](digits)
	if err != nil {
		return nil, err
	}
	weight, err := number[uint16](share)
	if err != nil {
		return nil, err
	}
	list, err := plainActions(then)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(list)))
	b = append(binary.BigEndian.AppendUint32(b, id), list...)
	b = append(b, 0, 0, 0, 8) // OFPGBPT_WEIGHT
	b = append(binary.BigEndian.AppendUint16(b, weight), 0, 0)
	binary.BigEndian.PutUint16(b, uint16(len(b)))
	return b, nil
}

// maxMethod is the longest name of a selection method, in bytes.
const maxMethod = 15

// selectionMethod is the property of a group that names its method, with the fields that it hashes, if any, in the order in which
// Open vSwitch prints them.
func selectionMethod(method, by string) ([]byte, error) {
	b := binary.BigEndian.AppendUint32([]byte{0xff, 0xff, 0, 0}, vendorNetron)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0)
	name := make([]byte, maxMethod+1)
	copy(name, method)
	b = append(append(b, name...), make([]byte, 8)...) // no parameter
	for name := range strings.SplitSeq(by, ",") {
		if name == "" {
			continue
		}
		f, err := lookUp(name)
		if err != nil {
			return nil, err
		}
		b = append(b, f.header(false)...)
		for range f.size {
			b = append(b, 0xff) // all of it
		}
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return pad(b, 8), nil
}
