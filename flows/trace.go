package flows

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Trace is the text of `ofproto/trace`, read.
type Trace struct {
	Steps []Step
	// Megaflow is the datapath flow that the packet would install, Datapath its actions; both as OVS
	// prints them.
	Megaflow, Datapath string
	// Passes are the datapath actions of each pass through the datapath, which connection tracking divides; Datapath
	// is the last of them.
	Passes []string
	// Final is the packet as it left the pipeline, or "unchanged".
	Final string
	// Stages are the packet as it came in, and as it came back from each look into connection tracking.
	Stages []Match
}

// Step is one table the packet went through. Cookie is zero where no flow matched.
type Step struct {
	Table    Table
	Match    string
	Priority uint16
	Cookie   uint64
	Actions  []string
	// Picks are the buckets that groups of this step chose, an outer group's before that of its part.
	Picks []Picked

	indent       int
	aside        bool     // only for packets above the MTU
	own          []string // Actions without those of buckets
	bucketIndent int      // of the bucket whose actions are being read; 0 outside of one
}

// stepLine is how ofproto/trace introduces a table: " 0. in_port=1, priority 100, cookie 0x12".
var stepLine = regexp.MustCompile(`^\s*(\d+)\. (.*)$`)
var stepTail = regexp.MustCompile(`^(.*?)(?:, )?priority (\d+)(?:, cookie (0x[0-9a-f]+))?$`)

// ParseTrace reads the output of `ovs-appctl ofproto/trace` (ovs-vswitchd(8)) for one bridge. Steps in other
// bridges, into which a userspace datapath follows the tunnel, are left out. The error says which part is
// missing and repeats what OVS said instead. Where the packet goes through connection tracking, megaflow and datapath actions
// are those of what comes last; Final is never "unchanged" then.
func ParseTrace(text, bridge string) (Trace, error) {
	var t Trace
	ours, large := true, false
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "Flow: "):
			large = t.stage(strings.TrimPrefix(line, "Flow: ")) // the way of a packet above the MTU is told up to here
		case large:
		case strings.HasPrefix(line, "bridge(\""):
			ours = line == fmt.Sprintf("bridge(%q)", bridge)
		case strings.HasPrefix(line, "Final flow: "):
			t.Final = t.final(strings.TrimPrefix(line, "Final flow: "))
		case strings.HasPrefix(line, "Megaflow: "):
			t.Megaflow = strings.TrimPrefix(line, "Megaflow: ")
		case strings.HasPrefix(line, "Datapath actions: "):
			t.Datapath = strings.TrimPrefix(line, "Datapath actions: ")
			t.Passes = append(t.Passes, t.Datapath)
		case ours:
			t.step(line)
		}
	}
	for i := range t.Steps {
		t.Steps[i].bucketIndent = 0
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
		s := Step{Table: Table(table), Match: m[2], indent: indent, aside: t.beside(indent)}
		if tail := stepTail.FindStringSubmatch(m[2]); tail != nil {
			s.Match = tail[1]
			p, _ := strconv.ParseUint(tail[2], 10, 16)
			s.Priority = uint16(p)
			s.Cookie, _ = strconv.ParseUint(tail[3], 0, 64)
		}
		t.Steps = append(t.Steps, s)
		return
	}
	if said := strings.TrimSpace(line); !strings.HasPrefix(line, "    ") || said == "thaw" || strings.HasPrefix(said, "Resuming from table ") {
		return // the latter two belong to no step
	}
	// check_pkt_larger is followed by the whole way of a large packet, indented, before the step goes on.
	for i := len(t.Steps) - 1; i >= 0; i-- {
		if t.Steps[i].indent < indent {
			t.Steps[i].did(indent, strings.TrimSpace(line))
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

// Exits are all ports that the packet leaves by, as OVS prints their numbers, each once; and the far end of the
// tunnel if one of them is the tunnel. The port that it came in by is none of them (OpenFlow 1.5 §4.5), and what only
// a packet above the MTU does is left out.
func (t Trace) Exits() (ports []string, tunnel string) {
	for _, s := range t.Steps {
		if s.Aside() {
			continue
		}
		for i, a := range s.Actions {
			if value, field, ok := strings.Cut(strings.TrimPrefix(a, "set_field:"), "->"); ok && (field == "tun_dst" || field == "tun_ipv6_dst") {
				tunnel = value
			}
			if i+1 < len(s.Actions) && strings.Contains(s.Actions[i+1], "skipping output to input port") {
				continue
			}
			port, ok := strings.CutPrefix(a, "-> output port is ")
			if !ok {
				if port, ok = strings.CutPrefix(a, "output:"); !ok || strings.Trim(port, "0123456789") != "" {
					continue
				}
			}
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports, tunnel
}

// Answered is true when the packet goes back by the port that it came from.
func (t Trace) Answered() bool {
	for _, s := range t.Steps {
		if slices.Contains(s.Actions, "IN_PORT") {
			return true
		}
	}
	return false
}

// Aside is true for a step that only a packet above the MTU takes: ofproto/trace indents those below the
// check_pkt_larger that divides the packets.
func (s Step) Aside() bool { return s.aside }

// Did are the actions of the flow itself, without OVS's remarks about what they lead to.
func (s Step) Did() Actions {
	var out Actions
	for _, a := range s.own {
		if strings.HasPrefix(a, "->") || strings.HasPrefix(a, ">>") || a == "drop" || a == "nat" || strings.HasPrefix(a, "nat(") || strings.HasSuffix(a, "->ct_mark") {
			continue // nat and what ct executes are told once more behind it
		}
		verb, arg := a, ""
		if i := strings.IndexAny(a, ":("); i >= 0 {
			verb, arg = a[:i], strings.TrimPrefix(a[i:], ":")
		}
		act := Action{verb, arg}
		if n := len(out); n > 0 && out[n-1] == act && verb == "goto_table" {
			continue // told once for the packets above the MTU and once for the others
		}
		out = append(out, act)
	}
	return out
}

// Of tells whether the step was taken by a wanted flow that stands on the switch as it was compiled. False may
// also mean that OVS tells the step in other words than it prints the flow; read the flow back then.
func (s Step) Of(d *Desired) bool {
	return d.Holds(Live{Table: s.Table, Priority: s.Priority, Cookie: s.Cookie, Match: s.Match, Actions: s.Did().String()})
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
