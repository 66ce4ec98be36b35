package ovs

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Switch is the OpenFlow side of one bridge. Each call runs ovs-ofctl, about 20 ms, other than Apply after
// KeepConnected.
type Switch struct {
	bridge, target string
	exec           Executor
	connection     connection
}

const ofctl = "ovs-ofctl"

// NewSwitch is the switch behind a bridge, at its management socket in runDir. An empty runDir is
// $OVS_RUNDIR or, without that, OVS's own default.
func NewSwitch(bridge, runDir string, x Executor) *Switch {
	return &Switch{bridge: bridge, target: "unix:" + filepath.Join(orDefault(runDir), bridge+".mgmt"), exec: x}
}

func orDefault(runDir string) string {
	return cmp.Or(runDir, os.Getenv("OVS_RUNDIR"), "/var/run/openvswitch")
}

// Error is a failure of ovs-ofctl.
type Error struct {
	// Op is the command of ovs-ofctl, Target the socket it spoke to.
	Op, Target string
	// Reason is ovs-ofctl's own sentence.
	Reason string
	// Line is the offending line of the bundle, counted from 1, and Text what it says, when ovs-ofctl
	// names a line. For what it could parse and the switch refused it names none: then Reason has
	// OpenFlow's error and the refused message.
	Line int
	Text string
	// Err is how ovs-ofctl ended.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("ovs-ofctl %s %s: %s", e.Op, e.Target, cmp.Or(e.Reason, e.Err.Error()))
	if e.Line > 0 {
		s += fmt.Sprintf(" (line %d: %s)", e.Line, e.Text)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Apply sends a bundle, lines of ovs-ofctl's bundle command such as "flow add …", "flow
// delete_strict …", "group add_or_mod …", in their order. All of it happens, at once, or none of it.
// A failure is an *Error.
func (s *Switch) Apply(ctx context.Context, bundle string) error {
	if strings.TrimSpace(bundle) == "" {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if done, err := s.applyDirectly(ctx, bundle); done {
		return err
	}
	_, err := s.run(ctx, bundle, "bundle", "-")
	return err
}

// Flows are the flows of the bridge.
func (s *Switch) Flows(ctx context.Context) ([]Installed, error) {
	out, err := s.Dump(ctx)
	if err != nil {
		return nil, err
	}
	return ParseFlows(strings.NewReader(out))
}

// Dump is the text of dump-flows, with args as on ovs-ofctl's command line: options such as --names
// or --no-stats, and at most one flow to match, such as "table=3".
func (s *Switch) Dump(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, "", "dump-flows", args...)
}

// Cookies counts the flows of each cookie, the zero cookie included. It is the cheapest look at a whole bridge.
func (s *Switch) Cookies(ctx context.Context) (map[uint64]int, error) {
	out, err := s.Dump(ctx, "--no-stats")
	if err != nil {
		return nil, err
	}
	cookies := map[uint64]int{}
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "actions=") {
			continue
		}
		var cookie uint64 // which --no-stats omits when it is zero
		if _, rest, ok := strings.Cut(line, "cookie="); ok {
			hex, _, _ := strings.Cut(rest, ",")
			if cookie, err = strconv.ParseUint(hex, 0, 64); err != nil {
				return nil, fmt.Errorf("dump-flows of bridge %s: cookie %q: %w", s.bridge, hex, err)
			}
		}
		cookies[cookie]++
	}
	return cookies, nil
}

// Groups is the text of dump-groups.
func (s *Switch) Groups(ctx context.Context) (string, error) { return s.run(ctx, "", "dump-groups") }

// command is the command line of one ovs-ofctl: options stand before the target, the rest behind it. Unless names of
// ports and tables are asked for, it is told that none will be given: else it would ask the switch for all of them,
// by two connections more, before it so much as reads its input.
func (s *Switch) command(op string, args ...string) []string {
	argv := []string{"-O", "OpenFlow15", "-vconsole:off"} // its log is not its answer
	if !slices.Contains(args, "--names") {
		argv = append(argv, "--no-names")
	}
	var rest []string
	for _, a := range args {
		if strings.HasPrefix(a, "--") {
			argv = append(argv, a)
		} else {
			rest = append(rest, a)
		}
	}
	return append(append(argv, op, s.target), rest...)
}

// run is one ovs-ofctl.
func (s *Switch) run(ctx context.Context, stdin, op string, args ...string) (string, error) {
	path, err := s.exec.LookPath(ofctl)
	if err != nil {
		return "", fmt.Errorf("ovs-ofctl is missing: install openvswitch-switch: %w", err)
	}
	var in io.Reader
	if stdin != "" {
		in = strings.NewReader(stdin)
	}
	out, errs, err := s.exec.Run(ctx, in, path, s.command(op, args...)...)
	if err != nil {
		return "", s.failure(op, stdin, errs, err)
	}
	return out, nil
}

// lineNumber is how ovs-ofctl says where in its input it stopped: "ovs-ofctl: -:3: unknown keyword".
var lineNumber = regexp.MustCompile(`(?m)^ovs-ofctl: -:(\d+): (.*)$`)

// refusal is how ovs-ofctl shows what the switch refused: "Error OFPBAC_BAD_OUT_GROUP for: OFPT_FLOW_MOD
// (OF1.5) (xid=0x7):", then the message, on the same line or on the next. What follows about the
// bundle as a whole (OFPBFC_MSG_FAILED) says nothing more.
var refusal = regexp.MustCompile(`(?m)^Error (\w+) for: (\w+) \([^)]*\) \(xid=\w+\):\s*(.*)$`)

func (s *Switch) failure(op, stdin, stderr string, err error) error {
	e := &Error{Op: op, Target: s.target, Err: err, Reason: strings.TrimPrefix(strings.TrimSpace(stderr), "ovs-ofctl: ")}
	if m := lineNumber.FindStringSubmatch(stderr); m != nil {
		e.Reason = m[2]
		e.Line, _ = strconv.Atoi(m[1]) // digits, by the pattern
		if lines := strings.Split(stdin, "\n"); e.Line >= 1 && e.Line <= len(lines) {
			e.Text = lines[e.Line-1]
		}
	} else if m := refusal.FindStringSubmatch(stderr); m != nil {
		e.Reason = fmt.Sprintf("the switch refused %s: %s: %s", m[2], m[1], m[3])
	}
	return e
}
