package openflow

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"
)

// Types of actions (OpenFlow 1.5.1, 7.2.6) and subtypes of those of Nicira's extension (ovs-actions(7)).
const (
	actionOutput       = 0
	actionGroup        = 22
	actionDecTTL       = 24
	actionSetField     = 25
	actionCopyField    = 28
	actionExperimenter = 0xffff

	vendorNicira       = 0x00002320
	subtypeResubmit    = 14
	subtypeOutputReg   = 15
	subtypeConjunction = 34
	subtypeConntrack   = 35
	subtypeNAT         = 36
	subtypeCheckLarger = 49

	portIn   = 0xfffffff8 // OFPP_IN_PORT
	portIn16 = 0xfff8     // the same, of OpenFlow 1.0
)

// actions writes a list of actions as ovs-ofctl takes them. goTo is the table of a goto_table at the end, which is no
// action but an instruction, nil when there is none.
func actions(text string) (list []byte, goTo *uint8, err error) {
	if text == "drop" {
		return nil, nil, nil
	}
	for _, word := range split(text) {
		if goTo != nil {
			return nil, nil, unknown("action behind goto_table", word)
		}
		if table, ok := strings.CutPrefix(word, "goto_table:"); ok {
			n, err := number[uint8](table)
			if err != nil {
				return nil, nil, err
			}
			goTo = &n
			continue
		}
		a, err := action(word)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, a...)
	}
	return list, goTo, nil
}

// plainActions is actions where there can be no goto_table.
func plainActions(text string) ([]byte, error) {
	list, goTo, err := actions(text)
	if err == nil && goTo != nil {
		return nil, unknown("list of actions", text)
	}
	return list, err
}

// split cuts at the commas that stand in no parentheses.
func split(text string) []string {
	var words []string
	depth, from := 0, 0
	for i := range len(text) {
		switch text[i] {
		case '(', '[':
			depth++
		case ')', ']':
			depth--
		case ',':
			if depth == 0 {
				words, from = append(words, text[from:i]), i+1
			}
		}
	}
	return append(words, text[from:])
}

func action(word string) ([]byte, error) {
	if word == "dec_ttl" {
		return write(actionDecTTL, make([]byte, 4)), nil
	}
	if word == "IN_PORT" {
		return output(portIn), nil
	}
	if verb, arg, ok := strings.Cut(word, ":"); ok && !strings.Contains(verb, "(") {
		switch verb {
		case "set_field":
			return setField(arg)
		case "move":
			return move(arg)
		case "output":
			return outputTo(arg)
		case "group":
			id, err := number[uint32](arg)
			return write(actionGroup, binary.BigEndian.AppendUint32(nil, id)), err
		}
		return nil, unknown("action", word)
	}
	verb, arg, _ := strings.Cut(word, "(")
	arg, behind, ok := cutLast(arg, ")")
	if !ok {
		return nil, unknown("action", word)
	}
	switch {
	case verb == "check_pkt_larger":
		return checkLarger(arg, behind)
	case behind != "":
		return nil, unknown("action", word)
	case verb == "ct":
		return conntrack(arg)
	case verb == "conjunction":
		return conjunction(arg)
	case verb == "resubmit":
		return resubmit(arg)
	}
	return nil, unknown("action", word)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// write is an action with its header, padded to 8 bytes.
func write(kind uint16, body []byte) []byte {
	b := append(binary.BigEndian.AppendUint16(nil, kind), 0, 0)
	b = pad(append(b, body...), 8)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// nicira is an action of Nicira's extension.
func nicira(subtype uint16, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, vendorNicira)
	return write(actionExperimenter, append(binary.BigEndian.AppendUint16(b, subtype), body...))
}

func output(port uint32) []byte {
	return write(actionOutput, append(binary.BigEndian.AppendUint32(nil, port), make([]byte, 8)...)) // max_len 0: it is for controllers
}

func outputTo(text string) ([]byte, error) {
	name, whole := strings.CutSuffix(text, "[]")
	if !whole {
		port, err := number[uint32](text)
		return output(port), err
	}
	f, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(f.size*8-1)) // first bit 0, number of bits less one
	b = append(b, f.header(false)...)
	return nicira(subtypeOutputReg, append(b, 0xff, 0xff)...), nil
}

// setField is VALUE[/MASK]->FIELD.
func setField(text string) ([]byte, error) {
	text, name, ok := cutLast(text, "->")
	if !ok {
		return nil, unknown("set_field", text)
	}
	f, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	value, mask, err := f.value(text)
	return write(actionSetField, f.entry(value, mask)), err
}

// move is SOURCE[]->DESTINATION[], fields of one size.
func move(text string) ([]byte, error) {
	source, destination, ok := strings.Cut(text, "[]->")
	destination, whole := strings.CutSuffix(destination, "[]")
	if !ok || !whole {
		return nil, unknown("move", text)
	}
	from, err := lookUp(source)
	if err != nil {
		return nil, err
	}
	to, err := lookUp(destination)
	if err != nil {
		return nil, err
	}
	if from.size != to.size {
		return nil, unknown("move", text)
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(from.size*8))
	b = append(b, 0, 0, 0, 0, 0, 0) // from bit 0 to bit 0
	return write(actionCopyField, append(append(b, from.header(false)...), to.header(false)...)), nil
}

// checkLarger is check_pkt_larger(SIZE)->FIELD[BIT].
func checkLarger(size, to string) ([]byte, error) {
	bytes, err := number[uint16](size)
	if err != nil {
		return nil, err
	}
	name, bit, ok := strings.Cut(strings.TrimPrefix(to, "->"), "[")
	if !ok {
		return nil, unknown("destination of check_pkt_larger", to)
	}
	at, err := number[uint16](strings.TrimSuffix(bit, "]"))
	if err != nil {
		return nil, err
	}
	f, err := lookUp(name)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint16(nil, bytes)
	return nicira(subtypeCheckLarger, append(binary.BigEndian.AppendUint16(b, at), f.header(false)...)...), nil
}

// conjunction is ID,NUMBER/OF.
func conjunction(arg string) ([]byte, error) {
	id, share, _ := strings.Cut(arg, ",")
	n, of, _ := strings.Cut(share, "/")
	conj, err1 := number[uint32](id)
	clause, err2 := number[uint8](n)
	clauses, err3 := number[uint8](of)
	if err1 != nil || err2 != nil || err3 != nil || clause == 0 {
		return nil, unknown("conjunction", arg)
	}
	return nicira(subtypeConjunction, binary.BigEndian.AppendUint32([]byte{clause - 1, clauses}, conj)...), nil
}

// resubmit is ",TABLE": with the port by which the packet came.
func resubmit(arg string) ([]byte, error) {
	table, err := number[uint8](strings.TrimPrefix(arg, ","))
	if err != nil || !strings.HasPrefix(arg, ",") {
		return nil, unknown("resubmit", arg)
	}
	return nicira(subtypeResubmit, portIn16>>8, portIn16&0xff, table, 0, 0, 0), nil
}

// conntrack is what stands in the parentheses of ct().
func conntrack(arg string) ([]byte, error) {
	var flags, zone uint16
	var nested []byte
	table := uint8(0xff) // no recirculation
	for _, word := range split(arg) {
		var err error
		name, value, _ := strings.Cut(word, "=")
		switch {
		case word == "commit":
			flags |= 1
		case name == "table":
			table, err = number[uint8](value)
		case name == "zone":
			zone, err = number[uint16](value)
		case word == "nat":
			nested = append(nested, nicira(subtypeNAT, make([]byte, 6)...)...)
		default:
			var more []byte
			if more, err = nestedAction(word); err == nil {
				nested = append(nested, more...)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	b := binary.BigEndian.AppendUint16(nil, flags)
	b = append(b, 0, 0, 0, 0) // the zone is a number, not a field
	b = binary.BigEndian.AppendUint16(b, zone)
	b = append(b, table, 0, 0, 0, 0, 0) // no helper
	return nicira(subtypeConntrack, append(b, nested...)...), nil
}

// nestedAction is nat(…) or exec(…) of ct().
func nestedAction(word string) ([]byte, error) {
	verb, arg, _ := strings.Cut(word, "(")
	arg, closed := strings.CutSuffix(arg, ")")
	switch {
	case verb == "nat" && closed:
		return nat(arg)
	case verb == "exec" && closed && strings.HasPrefix(arg, "set_field:") && len(split(arg)) == 1:
		return action(arg)
	}
	return nil, unknown("argument of ct", word)
}

// nat is src or dst, and the address behind it, with a port behind that, if they are given.
func nat(arg string) ([]byte, error) {
	side, to, given := strings.Cut(arg, "=")
	flags := map[string]byte{"src": 1, "dst": 2}[side]
	if flags == 0 {
		return nil, unknown("nat", arg)
	}
	b := []byte{0, 0, 0, flags, 0, 0}
	if !given {
		return nicira(subtypeNAT, b...), nil
	}
	// An IPv6 address stands alone, or in brackets before a port.
	a, err := netip.ParseAddr(to)
	var port []byte
	if err != nil {
		ap, err := netip.ParseAddrPort(to)
		if err != nil {
			return nil, unknown("nat", arg)
		}
		a, port = ap.Addr(), binary.BigEndian.AppendUint16(nil, ap.Port())
	}
	if a.Zone() != "" {
		return nil, unknown("nat", arg)
	}
	const lowestIPv4, lowestIPv6, lowestPort = 1, 4, 16 // which parts of a range follow
	b[5] = lowestIPv6
	if a.Is4() {
		b[5] = lowestIPv4
	}
	if port != nil {
		b[5] |= lowestPort
	}
	return nicira(subtypeNAT, append(append(b, a.AsSlice()...), port...)...), nil
}

// number reads a decimal or hexadecimal number.
func number[T uint8 | uint16 | uint32 | uint64](text string) (T, error) {
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil || uint64(T(n)) != n {
		return 0, unknown("number", text)
	}
	return T(n), nil
}
