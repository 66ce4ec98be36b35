package openflow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ErrUnknown says that a line has a word that this package does not write; ovs-ofctl may. The error that wraps it names
// the word.
var ErrUnknown = errors.New("not among the words that are written here")

func unknown(what, word string) error { return fmt.Errorf("%s %q: %w", what, word, ErrUnknown) }

// Version is OpenFlow 1.5 in the header of a message.
const Version = 6

// Types of messages (OpenFlow 1.5.1, 7.1.1).
const (
	TypeHello         = 0
	TypeError         = 1
	TypeEchoRequest   = 2
	TypeEchoReply     = 3
	TypeFlowMod       = 14
	TypeGroupMod      = 15
	TypeBundleControl = 33
	TypeBundleAdd     = 34
)

// Types of OFPT_BUNDLE_CONTROL (OpenFlow 1.5.1, 7.3.9.1).
const (
	BundleOpen      = 0
	BundleCommit    = 4
	BundleCommitted = 5
)

// HeaderSize is that of the header of every message, in bytes.
const HeaderSize = 8

// bundleFlags are OFPBF_ATOMIC and OFPBF_ORDERED.
const bundleFlags = 1 | 2

// maxMessage is the longest message, in bytes: its length is a number of 16 bits.
const maxMessage = 1<<16 - 1

// Message is a message with its header.
func Message(kind uint8, xid uint32, body []byte) []byte {
	b := []byte{Version, kind, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(HeaderSize+len(body)))
	binary.BigEndian.PutUint32(b[4:], xid)
	return append(b, body...)
}

// BundleControl opens or commits the bundle of that number: all or nothing, in order.
func BundleControl(xid, bundle uint32, what uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, bundle)
	b = binary.BigEndian.AppendUint16(b, what)
	return Message(TypeBundleControl, xid, binary.BigEndian.AppendUint16(b, bundleFlags))
}

// BundleAdd adds what Line wrote to a bundle; both get the transaction number xid, by which an error names them.
func BundleAdd(xid, bundle uint32, message []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, bundle)
	b = append(b, 0, 0, 0, bundleFlags)
	at := len(b)
	b = append(b, message...)
	binary.BigEndian.PutUint32(b[at+4:], xid)
	return Message(TypeBundleAdd, xid, b)
}

// Line writes one line of a bundle as a message with transaction number 0:
//
//	flow add cookie=0x1,table=5,priority=100,ip,nw_dst=198.51.100.0/24 actions=goto_table:10
//	flow delete cookie=0x1/-1
//	group add_or_mod group_id=7,type=select,selection_method=dp_hash,bucket=…
//	group delete group_id=7
//
// The error wraps ErrUnknown when the line is another, or has a word that is not known here.
func Line(line string) (message []byte, err error) {
	switch {
	case strings.HasPrefix(line, "flow add "):
		message, err = flowAdd(strings.TrimPrefix(line, "flow add "))
	case strings.HasPrefix(line, "flow delete "):
		message, err = flowDelete(strings.TrimPrefix(line, "flow delete "))
	case strings.HasPrefix(line, "group add_or_mod "):
		message, err = groupAddOrMod(strings.TrimPrefix(line, "group add_or_mod "))
	case strings.HasPrefix(line, "group delete group_id="):
		var id uint32
		id, err = number[uint32](strings.TrimPrefix(line, "group delete group_id="))
		message = groupMod(groupCommandDelete, 0, id, nil, nil)
	default:
		return nil, unknown("line", line)
	}
	if err != nil {
		return nil, err
	}
	if len(message) > maxMessage-2*HeaderSize { // those of OFPT_BUNDLE_ADD_MESSAGE
		return nil, fmt.Errorf("a message of %d bytes: %w", len(message), ErrUnknown)
	}
	return message, nil
}

// Commands of OFPT_FLOW_MOD.
const (
	flowAddCommand    = 0
	flowDeleteCommand = 3
)

// defaultPriority is that of a flow which does not name one (ovs-ofctl(8)).
const defaultPriority = 32768

func flowAdd(text string) ([]byte, error) {
	spec, then, ok := strings.Cut(text, " actions=")
	if !ok {
		return nil, unknown("flow without actions", text)
	}
	var cookie uint64
	var table uint8
	priority := uint16(defaultPriority)
	var fields []string
	for word := range strings.SplitSeq(spec, ",") {
		var err error
		switch name, value, _ := strings.Cut(word, "="); name {
		case "cookie":
			cookie, err = number[uint64](value)
		case "table":
			table, err = number[uint8](value)
		case "priority":
			priority, err = number[uint16](value)
		default:
			fields = append(fields, word)
		}
		if err != nil {
			return nil, err
		}
	}
	matched, err := match(fields)
	if err != nil {
		return nil, err
	}
	list, goTo, err := actions(then)
	if err != nil {
		return nil, err
	}
	b := append(flowMod(cookie, 0, table, flowAddCommand, priority), matched...)
	if len(list) > 0 {
		b = append(b, 0, 4) // OFPIT_APPLY_ACTIONS
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(list)))
		b = append(append(b, 0, 0, 0, 0), list...)
	}
	if goTo != nil {
		b = append(b, 0, 1, 0, 8, *goTo, 0, 0, 0) // OFPIT_GOTO_TABLE
	}
	return Message(TypeFlowMod, 0, b), nil
}

// flowDelete deletes what has a cookie, in all tables.
func flowDelete(text string) ([]byte, error) {
	text, whole := strings.CutSuffix(text, "/-1")
	text, named := strings.CutPrefix(text, "cookie=")
	if !whole || !named {
		return nil, unknown("flow to delete", text)
	}
	cookie, err := number[uint64](text)
	if err != nil {
		return nil, err
	}
	everything, _ := match(nil)
	const allTables = 0xff
	return Message(TypeFlowMod, 0, append(flowMod(cookie, 1<<64-1, allTables, flowDeleteCommand, defaultPriority), everything...)), nil
}

// flowMod is OFPT_FLOW_MOD up to its match: no time-outs, no buffer, any port and group, no flags.
func flowMod(cookie, cookieMask uint64, table, command uint8, priority uint16) []byte {
	b := binary.BigEndian.AppendUint64(nil, cookie)
	b = binary.BigEndian.AppendUint64(b, cookieMask)
	b = append(b, table, command, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, priority)
	for range 3 {
		b = append(b, 0xff, 0xff, 0xff, 0xff)
	}
	return append(b, 0, 0, 0, 0)
}
