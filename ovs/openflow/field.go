package openflow

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Classes of match fields: those of OpenFlow, its packet registers, and two of extensions (ovs-fields(7)).
const (
	classBasic     = 0x8000
	classRegisters = 0x8001
	classNicira    = 0x0001
	classEricsson  = 0x1000
)

// field is a field of packets or of their metadata.
type field struct {
	// names are those in matches and set_field, and last, in capitals, that in move and output.
	names string
	class uint16
	// number is that of the field in its class, size that of a value in bytes.
	number uint8
	size   int
	// read makes a value and its mask of text; the mask is nil when all of the value counts. nil: a number.
	read func(text string, size int) (value, mask []byte, err error)
}

// fields are those that can be matched, in the order in which Open vSwitch writes them, then those that can only be set.
var fields = []field{
	{names: "conj_id", class: classNicira, number: 37, size: 4},
	{names: "in_port", class: classBasic, number: 0, size: 4},
	{names: "dl_src eth_src NXM_OF_ETH_SRC", class: classBasic, number: 4, size: 6, read: readMAC},
	{names: "dl_dst eth_dst NXM_OF_ETH_DST", class: classBasic, number: 3, size: 6, read: readMAC},
	{names: "eth_type", class: classBasic, number: 5, size: 2},
	{names: "nw_src ip_src NXM_OF_IP_SRC", class: classBasic, number: 11, size: 4, read: readAddress},
	{names: "nw_dst ip_dst NXM_OF_IP_DST", class: classBasic, number: 12, size: 4, read: readAddress},
	{names: "ipv6_src NXM_NX_IPV6_SRC", class: classBasic, number: 26, size: 16, read: readAddress},
	{names: "ipv6_dst NXM_NX_IPV6_DST", class: classBasic, number: 27, size: 16, read: readAddress},
	{names: "nw_ttl", class: classNicira, number: 29, size: 1},
	{names: "nw_proto", class: classBasic, number: 10, size: 1},
	{names: "tcp_src", class: classBasic, number: 13, size: 2},
	{names: "tcp_dst", class: classBasic, number: 14, size: 2},
	{names: "tcp_flags", class: classBasic, number: 42, size: 2, read: readFlags("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns")},
	{names: "udp_src", class: classBasic, number: 15, size: 2},
	{names: "udp_dst", class: classBasic, number: 16, size: 2},
	{names: "sctp_src", class: classBasic, number: 17, size: 2},
	{names: "sctp_dst", class: classBasic, number: 18, size: 2},
	{names: "icmpv4_type", class: classBasic, number: 19, size: 1},
	{names: "icmpv4_code", class: classBasic, number: 20, size: 1},
	{names: "icmpv6_type", class: classBasic, number: 29, size: 1},
	{names: "icmpv6_code", class: classBasic, number: 30, size: 1},
	{names: "nd_target NXM_NX_ND_TARGET", class: classBasic, number: 31, size: 16, read: readAddress},
	{names: "nd_sll NXM_NX_ND_SLL", class: classBasic, number: 32, size: 6, read: readMAC},
	{names: "nd_tll NXM_NX_ND_TLL", class: classBasic, number: 33, size: 6, read: readMAC},
	{names: "arp_op", class: classBasic, number: 21, size: 2},
	{names: "arp_spa NXM_OF_ARP_SPA", class: classBasic, number: 22, size: 4, read: readAddress},
	{names: "arp_tpa NXM_OF_ARP_TPA", class: classBasic, number: 23, size: 4, read: readAddress},
	{names: "arp_sha NXM_NX_ARP_SHA", class: classBasic, number: 24, size: 6, read: readMAC},
	{names: "arp_tha NXM_NX_ARP_THA", class: classBasic, number: 25, size: 6, read: readMAC},
	{names: "tun_id", class: classBasic, number: 38, size: 8},
	{names: "tun_src", class: classNicira, number: 31, size: 4, read: readAddress},
	{names: "tun_dst", class: classNicira, number: 32, size: 4, read: readAddress},
	{names: "tun_ipv6_src", class: classNicira, number: 109, size: 16, read: readAddress},
	{names: "tun_ipv6_dst", class: classNicira, number: 110, size: 16, read: readAddress},
	// Registers stand here, two in one packet register of OpenFlow: see match.
	{names: "pkt_mark", class: classNicira, number: 33, size: 4},
	{names: "ct_state", class: classNicira, number: 105, size: 4, read: readFlags("new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat")},
	{names: "ct_mark NXM_NX_CT_MARK", class: classNicira, number: 107, size: 4},
	{names: "nd_reserved", class: classEricsson, number: 1, size: 4},
	{names: "nd_options_type", class: classEricsson, number: 2, size: 1},
}

// fieldByName has all names of all fields.
var fieldByName = func() map[string]int {
	index := map[string]int{}
	for i, f := range fields {
		for name := range strings.FieldsSeq(f.names) {
			index[name] = i
		}
	}
	return index
}()

// lookUp finds a field by one of its names, registers included: reg0 to reg15, xxreg0 to xxreg3, NXM_NX_REG0 and so on.
func lookUp(name string) (field, error) {
	if i, ok := fieldByName[name]; ok {
		return fields[i], nil
	}
	if n, ok := register(name, "reg", 16); ok {
		return field{names: name, class: classNicira, number: n, size: 4}, nil
	}
	if n, ok := register(name, "NXM_NX_REG", 16); ok {
		return field{names: name, class: classNicira, number: n, size: 4}, nil
	}
	if n, ok := register(name, "xxreg", 4); ok {
		return field{names: name, class: classNicira, number: 111 + n, size: 16}, nil
	}
	return field{}, unknown("field", name)
}

// register reads the number of a register of which there are so many.
func register(name, prefix string, count int) (uint8, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	n, err := strconv.Atoi(digits)
	return uint8(n), ok && err == nil && n >= 0 && n < count
}

// header is the field's header in a match or an action (OpenFlow 1.5.1, 7.2.3.2).
func (f field) header(masked bool) []byte {
	h := []byte{byte(f.class >> 8), byte(f.class), f.number << 1, byte(f.size)}
	if masked {
		h[2] |= 1
		h[3] *= 2
	}
	return h
}

// entry is the field with a value, and with the mask unless that is nil.
func (f field) entry(value, mask []byte) []byte {
	return append(append(f.header(mask != nil), value...), mask...)
}

// value reads the text of a value, with a mask behind a slash if there is one.
func (f field) value(text string) (value, mask []byte, err error) {
	read := f.read
	if read == nil {
		read = readNumber
	}
	if value, mask, err = read(text, f.size); err != nil {
		return nil, nil, err
	}
	full := true
	for i, m := range mask {
		value[i] &= m
		full = full && m == 0xff
	}
	if full {
		mask = nil
	}
	return value, mask, nil
}

func readNumber(text string, size int) (value, mask []byte, err error) {
	number, bits, masked := strings.Cut(text, "/")
	if value, err = readDigits(number, size); err != nil || !masked {
		return value, nil, err
	}
	mask, err = readDigits(bits, size)
	return value, mask, err
}

// readDigits reads a number of so many bytes, decimal, or hexadecimal of any length behind 0x.
func readDigits(text string, size int) ([]byte, error) {
	out := make([]byte, size)
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		raw, err := hex.DecodeString(strings.Repeat("0", len(digits)&1) + digits)
		if err != nil || len(raw) == 0 || len(raw) > size {
			return nil, unknown(fmt.Sprintf("number of %d bytes", size), text)
		}
		copy(out[size-len(raw):], raw)
		return out, nil
	}
	n, err := strconv.ParseUint(text, 10, min(size, 8)*8)
	if err != nil {
		return nil, unknown(fmt.Sprintf("number of %d bytes", size), text)
	}
	for i := size - 1; i >= 0 && n > 0; i-- {
		out[i], n = byte(n), n>>8
	}
	return out, nil
}

func readMAC(text string, size int) (value, mask []byte, err error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != size {
		return nil, nil, unknown("Ethernet address", text)
	}
	return mac, nil, nil
}

// readAddress reads an IPv4 or IPv6 address, whichever has that size, with the length of a prefix if there is one.
func readAddress(text string, size int) (value, mask []byte, err error) {
	a, err := netip.ParseAddr(text)
	bits := a.BitLen()
	if p, perr := netip.ParsePrefix(text); perr == nil {
		a, bits, err = p.Addr(), p.Bits(), nil
	}
	if err != nil || a.Zone() != "" || a.BitLen() != size*8 {
		return nil, nil, unknown(fmt.Sprintf("address of %d bytes", size), text)
	}
	return a.AsSlice(), net.CIDRMask(bits, size*8), nil
}

// readFlags reads "+new-est": flags that must be there, or must not be; names are those of the bits, lowest first.
func readFlags(names ...string) func(string, int) ([]byte, []byte, error) {
	return func(text string, size int) (value, mask []byte, err error) {
		value, mask = make([]byte, size), make([]byte, size)
		for rest := text; rest != ""; {
			sign, name := rest[0], rest[1:]
			if end := strings.IndexAny(name, "+-"); end >= 0 {
				name = name[:end]
			}
			rest = rest[1+len(name):]
			bit := -1
			for i, n := range names {
				if n == name {
					bit = i
				}
			}
			if bit < 0 || sign != '+' && sign != '-' {
				return nil, nil, unknown("flags", text)
			}
			at, flag := size-1-bit/8, byte(1)<<(bit%8)
			mask[at] |= flag
			if sign == '+' {
				value[at] |= flag
			}
		}
		return value, mask, nil
	}
}
