package flows

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Trace is the text of `ofproto/trace`, read.
type Trace struct {
	Steps []Step
	// Megaflow is the datapath flow that the packet would install, Datapath its actions; both as OVS
	// prints them.
	Megaflow, Datapath string
	// Final is the packet as it left the pipeline, or "unchanged".
	Final string
}

// Step is one table the packet went through. Cookie is zero where no flow matched.
type Step struct {
	Table    Table
	Match    string
	Priority uint16
	Cookie   uint64
	Actions  []string

	indent int
}

// stepLine is how ofproto/trace introduces a table: " 0. in_port=1, priority 100, cookie 0x12".
var stepLine = regexp.MustCompile(`^\s*(\d+)\. (.*)$`)
var stepTail = regexp.MustCompile(`^(.*?)(?:, )?priority (\d+)(?:, cookie (0x[0-9a-f]+))?$`)

// ParseTrace reads the output of `ovs-appctl ofproto/trace` (ovs-vswitchd(8)) for one bridge. Steps in other
// bridges, into which a userspace datapath follows the tunnel, are left out. The error says which part is
// missing and repeats what OVS said instead.
func ParseTrace(text, bridge string) (Trace, error) {
	var t Trace
	ours := true
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "bridge(\""):
			ours = line == fmt.Sprintf("bridge(%q)", bridge)
		case strings.HasPrefix(line, "Final flow: "):
			t.Final = strings.TrimPrefix(line, "Final flow: ")
		case strings.HasPrefix(line, "Megaflow: "):
			t.Megaflow = strings.TrimPrefix(line, "Megaflow: ")
		case strings.HasPrefix(line, "Datapath actions: "):
			t.Datapath = strings.TrimPrefix(line, "Datapath actions: ")
		case ours:
			t.step(line)
		}
	}
	if t.Datapath == "" || len(t.Steps) == 0 {
		return t, fmt.Errorf("ofproto/trace gave no datapath actions; OVS said: %s", strings.TrimSpace(text))
	}
	return t, nil
}

func (t *Trace) step(line string) {
	indent := len(line) - len(strings.TrimLeft(line, " "))
	if m := stepLine.FindStringSubmatch(line); m != nil {
		table, err := strconv.ParseUint(m[1], 10, 8)
		if err != nil {
			return
		}
		s := Step{Table: Table(table), Match: m[2], indent: indent}
		if tail := stepTail.FindStringSubmatch(m[2]); tail != nil {
			s.Match = tail[1]
			p, _ := strconv.ParseUint(tail[2], 10, 16)
			s.Priority = uint16(p)
			s.Cookie, _ = strconv.ParseUint(tail[3], 0, 64)
		}
		t.Steps = append(t.Steps, s)
		return
	}
	if !strings.HasPrefix(line, "    ") {
		return
	}
	// check_pkt_larger is followed by the whole way of a large packet, indented, before the step goes on.
	for i := len(t.Steps) - 1; i >= 0; i-- {
		if t.Steps[i].indent < indent {
			t.Steps[i].Actions = append(t.Steps[i].Actions, strings.TrimSpace(line))
			return
		}
	}
}

// Exit is how the packet leaves the bridge: the OpenFlow port as OVS prints it, and the far end of the
// tunnel if it takes that. Both are empty when it does not leave.
func (t Trace) Exit() (port, tunnel string) {
	for _, s := range t.Steps {
		for _, a := range s.Actions {
			if value, field, ok := strings.Cut(strings.TrimPrefix(a, "set_field:"), "->"); ok && (field == "tun_dst" || field == "tun_ipv6_dst") {
				tunnel = value
			}
			if p, ok := strings.CutPrefix(a, "-> output port is "); ok {
				port = p
			} else if p, ok := strings.CutPrefix(a, "output:"); ok && strings.Trim(p, "0123456789") == "" {
				port = p
			}
		}
	}
	if port != fmt.Sprint(TunnelPort) {
		tunnel = ""
	}
	return port, tunnel
}

// Dropped is true when the datapath would drop the packet.
func (t Trace) Dropped() bool { return t.Datapath == "drop" }

// Last is the step that decided: the last one with a flow.
func (t Trace) Last() Step {
	for i := len(t.Steps) - 1; i >= 0; i-- {
		if t.Steps[i].Cookie != 0 {
			return t.Steps[i]
		}
	}
	return Step{}
}
