package ovs

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
)

// Installed is a flow as dump-flows shows it.
type Installed struct {
	Table uint8
	// TableName is set, and Table is 0, when the dump shows names instead of numbers (--names).
	TableName string
	// Priority is 32768 where the dump shows none: OpenFlow's default.
	Priority uint16
	Cookie   uint64
	// Packets and Bytes are 0 in a dump without statistics.
	Packets, Bytes uint64
	// Text is the match as OVS writes it, empty for one that matches everything.
	Text string
	// Actions are as OVS writes them.
	Actions string
}

// Live are flows as package flows compares them with what is wanted.
func Live(installed []Installed) []flows.Live {
	out := make([]flows.Live, len(installed))
	for i, f := range installed {
		out[i] = f.Live()
	}
	return out
}

// Live is one flow as package flows compares it.
func (f Installed) Live() flows.Live {
	return flows.Live{Table: flows.Table(f.Table), Priority: f.Priority, Cookie: f.Cookie, Match: f.Text, Actions: f.Actions}
}

// defaultPriority is OFP_DEFAULT_PRIORITY, which ovs-ofctl does not print.
const defaultPriority = 32768

// ParseFlows reads the output of ovs-ofctl dump-flows, also a saved one, with or without --names and
// --no-stats. Lines that are no flows are skipped; a flow that makes no sense is an error naming its line.
func ParseFlows(r io.Reader) ([]Installed, error) {
	var flows []Installed
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20) // one flow with a long action list is one line
	for n := 1; in.Scan(); n++ {
		head, actions, ok := cutActions(in.Text())
		if !ok {
			continue
		}
		f := Installed{Priority: defaultPriority, Actions: strings.TrimSpace(actions)}
		if err := f.parse(head); err != nil {
			return nil, fmt.Errorf("line %d of the flow dump: %w", n, err)
		}
		flows = append(flows, f)
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("reading the flow dump: %w", err)
	}
	return flows, nil
}

// cutActions divides a flow before "actions=", which begins the line or follows a space or comma, and
// is not part of a quoted name.
func cutActions(line string) (head, actions string, ok bool) {
	const mark = "actions="
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && c == mark[0] && strings.HasPrefix(line[i:], mark) && (i == 0 || line[i-1] == ' ' || line[i-1] == ','):
			return line[:i], line[i+len(mark):], true
		}
	}
	return "", "", false
}

// parse takes apart what stands before the actions: fields of the flow, then the match. Only the
// former are known here, so that a match OVS learns tomorrow is read as well.
func (f *Installed) parse(head string) error {
	var match []string
	for _, token := range tokens(head) {
		key, value, _ := strings.Cut(token, "=")
		var err error
		switch key {
		case "cookie":
			f.Cookie, err = strconv.ParseUint(value, 0, 64)
		case "table", "table_id":
			err = f.parseTable(value)
		case "n_packets":
			f.Packets, err = strconv.ParseUint(value, 10, 64)
		case "n_bytes":
			f.Bytes, err = strconv.ParseUint(value, 10, 64)
		case "priority":
			var p uint64
			p, err = strconv.ParseUint(value, 10, 16)
			f.Priority = uint16(p)
		case "duration", "idle_timeout", "hard_timeout", "importance", "idle_age", "hard_age",
			"send_flow_rem", "check_overlap", "reset_counts", "no_packet_counts", "no_byte_counts":
			// Of no use to us.
		default:
			match = append(match, token)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	f.Text = strings.Join(match, ",")
	return nil
}

func (f *Installed) parseTable(value string) error {
	if value == "" {
		return fmt.Errorf("no number and no name")
	}
	id, err := strconv.ParseUint(value, 10, 8)
	if err == nil {
		f.Table = uint8(id)
		return nil
	}
	if value[0] >= '0' && value[0] <= '9' {
		return err
	}
	f.TableName = strings.Trim(value, `"`)
	return nil
}

// tokens divides at commas and spaces, but not inside quotes and parentheses.
func tokens(s string) []string {
	var out []string
	depth, quoted, start := 0, false, 0
	cut := func(end int) {
		if end > start {
			out = append(out, s[start:end])
		}
		start = end + 1
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth = max(0, depth-1)
		case depth == 0 && (c == ',' || c == ' ' || c == '\t'):
			cut(i)
		}
	}
	cut(len(s))
	return out
}
