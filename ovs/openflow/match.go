package openflow

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// Numbers of EtherTypes (IEEE 802) and of protocols (IANA) that keywords of a match stand for.
var keywords = map[string]struct {
	etherType uint16
	protocol  uint8
}{
	"ip": {0x0800, 0}, "icmp": {0x0800, 1}, "tcp": {0x0800, 6}, "udp": {0x0800, 17}, "sctp": {0x0800, 132},
	"ipv6": {0x86dd, 0}, "icmp6": {0x86dd, 58}, "tcp6": {0x86dd, 6}, "udp6": {0x86dd, 17}, "sctp6": {0x86dd, 132},
	"arp": {0x0806, 0},
}

// ofProtocol is the name of a field that depends on the packet's protocol, such as tp_dst.
func ofProtocol(name string, protocol uint8) string {
	switch name {
	case "tp_src", "tp_dst":
		return map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}[protocol] + strings.TrimPrefix(name, "tp")
	case "icmp_type", "icmp_code":
		return map[uint8]string{1: "icmpv4", 58: "icmpv6"}[protocol] + strings.TrimPrefix(name, "icmp")
	}
	return name
}

// matchEntry is one field of a match, by the rank that it has in fields.
type matchEntry struct {
	rank int
	raw  []byte
}

// match writes a match (struct ofp_match) of fields as ovs-ofctl takes them, padded to 8 bytes.
func match(words []string) ([]byte, error) {
	var entries []matchEntry
	add := func(name, text string) error {
		rank, known := fieldByName[name]
		if !known || fields[rank].class == classEricsson {
			return unknown("field of a match", name)
		}
		value, mask, err := fields[rank].value(text)
		if err == nil {
			entries = append(entries, matchEntry{rank, fields[rank].entry(value, mask)})
		}
		return err
	}
	var protocol uint8
	var registers registerMatch
	for _, word := range words {
		name, text, valued := strings.Cut(word, "=")
		if !valued {
			k, known := keywords[name]
			if !known {
				return nil, unknown("keyword of a match", name)
			}
			err := add("eth_type", strconv.Itoa(int(k.etherType)))
			if protocol = k.protocol; protocol != 0 && err == nil {
				err = add("nw_proto", strconv.Itoa(int(protocol)))
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		if n, ok := register(name, "reg", 16); ok {
			if err := registers.add(n, text); err != nil {
				return nil, err
			}
			continue
		}
		if err := add(ofProtocol(name, protocol), text); err != nil {
			return nil, err
		}
	}
	entries = append(registers.entries(), entries...)
	slices.SortStableFunc(entries, func(a, b matchEntry) int { return a.rank - b.rank })
	out := []byte{0, 1, 0, 0} // OFPMT_OXM
	for _, e := range entries {
		out = append(out, e.raw...)
	}
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return pad(out, 8), nil
}

// registerMatch collects 32-bit registers: OpenFlow 1.5 has them two by two as packet registers of 64 bits, the one with
// the even number in the upper half.
type registerMatch [8]struct{ value, mask [8]byte }

func (m *registerMatch) add(n uint8, text string) error {
	value, mask, err := field{size: 4}.value(text)
	if err != nil {
		return err
	}
	if mask == nil {
		mask = []byte{0xff, 0xff, 0xff, 0xff}
	}
	at := int(n) % 2 * 4
	copy(m[n/2].value[at:], value)
	copy(m[n/2].mask[at:], mask)
	return nil
}

func (m *registerMatch) entries() []matchEntry {
	var out []matchEntry
	for i, r := range m {
		if r.mask == [8]byte{} {
			continue
		}
		f, mask := field{class: classRegisters, number: uint8(i), size: 8}, r.mask[:]
		if binary.BigEndian.Uint64(mask) == 1<<64-1 {
			mask = nil
		}
		out = append(out, matchEntry{fieldByName["pkt_mark"], f.entry(r.value[:], mask)})
	}
	return out
}

// pad fills up with zeros to a multiple of n.
func pad(b []byte, n int) []byte {
	return append(b, make([]byte, (n-len(b)%n)%n)...)
}
