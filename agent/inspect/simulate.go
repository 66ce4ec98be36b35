package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// schemaPath is where every distribution's package puts the schema of OVSDB.
const schemaPath = "/usr/share/openvswitch/vswitch.ovsschema"

// simulation is a private Open vSwitch with a dummy datapath that holds a saved table.
type simulation struct {
	*ovs.Daemon
	dir  string
	stop []func() error
}

// Close ends both daemons and removes what they left.
func (s *simulation) Close() error {
	var errs []error
	if s.Daemon != nil {
		s.Daemon.Close()
	}
	for i := len(s.stop) - 1; i >= 0; i-- {
		errs = append(errs, s.stop[i]())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// Simulate starts an Open vSwitch of its own, without root and without devices, that holds the given flows and
// groups, so that packets can be traced through a table that was saved elsewhere. Conntrack is empty there. The
// Tracer is to be closed. The error says which program is missing.
func Simulate(ctx context.Context, x ovs.Executor, bridge string, installed []ovs.Installed, groups string) (Tracer, error) {
	for _, program := range []string{"ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl"} {
		if _, err := x.LookPath(program); err != nil {
			return nil, fmt.Errorf("tracing through a saved table needs a private Open vSwitch, and %s is not installed here: install openvswitch-switch (it does not have to run), or ask the live node", program)
		}
	}
	dir, err := os.MkdirTemp("", "twl")
	if err != nil {
		return nil, err
	}
	s := &simulation{dir: dir}
	if err := s.start(ctx, x, bridge, installed, groups); err != nil {
		return nil, errors.Join(fmt.Errorf("a private Open vSwitch for the saved table: %w", err), s.Close())
	}
	return s, nil
}

func (s *simulation) start(ctx context.Context, x ovs.Executor, bridge string, installed []ovs.Installed, groups string) error {
	at := func(name string) string { return filepath.Join(s.dir, name) }
	run := func(stdin, program string, args ...string) error {
		env, err := x.LookPath("env") // the sockets of bridges go where OVS_RUNDIR says
		if err != nil {
			return err
		}
		var in io.Reader
		if stdin != "" {
			in = strings.NewReader(stdin)
		}
		if _, stderr, err := x.Run(ctx, in, env, append([]string{"OVS_RUNDIR=" + s.dir, "OVS_DBDIR=" + s.dir, "OVS_SYSCONFDIR=" + s.dir, program}, args...)...); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(stderr))
		}
		return nil
	}
	daemon := func(program string, args ...string) error {
		s.stop = append(s.stop, func() error { return exitDaemon(at(program + ".ctl")) })
		return run("", program, append(args, "--pidfile="+at(program+".pid"), "--unixctl="+at(program+".ctl"), "--log-file="+at(program+".log"), "-vconsole:off", "--detach")...)
	}
	db := "unix:" + at("db.sock")
	bundle, ports := restore(installed, groups)
	vsctl := []string{"--db=" + db, "--timeout=10", "--", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=dummy", "fail_mode=secure", "protocols=OpenFlow15"}
	for _, p := range ports {
		name := fmt.Sprintf("p%d", p)
		vsctl = append(vsctl, "--", "add-port", bridge, name, "--", "set", "interface", name, fmt.Sprintf("ofport_request=%d", p))
		if p == flows.TunnelPort {
			vsctl = append(vsctl, "type=geneve", "options:remote_ip=flow", "options:key=flow")
		}
	}
	for _, step := range []func() error{
		func() error { return run("", "ovsdb-tool", "create", at("conf.db"), schemaPath) },
		func() error { return daemon("ovsdb-server", at("conf.db"), "--remote=punix:"+at("db.sock")) },
		func() error { return run("", "ovs-vsctl", "--db="+db, "--no-wait", "init") },
		func() error { return daemon("ovs-vswitchd", db, "--enable-dummy=override") },
		func() error { return run("", "ovs-vsctl", vsctl...) },
		func() error {
			return run(bundle, "ovs-ofctl", "-O", "OpenFlow15", "bundle", "unix:"+at(bridge+".mgmt"), "-")
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	var err error
	s.Daemon, err = ovs.DialControl(ctx, at("ovs-vswitchd.ctl"))
	return err
}

// exitDaemon asks a daemon to end by its control socket; one that never started is no error.
func exitDaemon(ctl string) error {
	if _, err := os.Stat(ctl); err != nil {
		return nil
	}
	d, err := ovs.DialControl(context.Background(), ctl)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.Call(context.Background(), "exit")
	if err != nil && strings.Contains(err.Error(), "connection was lost") {
		return nil
	}
	return err
}

// portField finds the ports that flows name: where packets come in, and where they leave.
var portField = regexp.MustCompile(`in_port=(\d+)|output:(\d+)|set_field:(0x[0-9a-f]+)->reg1`)

// printedFields are the fields of a hash as ovs-ofctl prints them; it takes them in parentheses only.
var printedFields = regexp.MustCompile(`selection_method=hash,fields=([a-z0-9_]+)`)

// restore turns a saved table into lines of ovs-ofctl's bundle, and collects the ports that its flows name.
func restore(installed []ovs.Installed, groups string) (bundle string, ports []uint32) {
	var b strings.Builder
	var outer []string // groups that lead to others, which have to be there before
	for line := range strings.Lines(groups) {
		line = printedFields.ReplaceAllString(strings.TrimSpace(line), "selection_method=hash,fields($1)")
		switch {
		case !strings.HasPrefix(line, "group_id="):
		case strings.Contains(line, "actions=group:"):
			outer = append(outer, line)
		default:
			fmt.Fprintf(&b, "group add %s\n", line)
		}
	}
	for _, line := range outer {
		fmt.Fprintf(&b, "group add %s\n", line)
	}
	seen := map[uint32]bool{}
	for _, f := range installed {
		line := f.Live().Line()
		fmt.Fprintf(&b, "flow add %s\n", line)
		for _, m := range portField.FindAllStringSubmatch(line, -1) {
			n, err := strconv.ParseUint(cmp.Or(m[1], m[2], m[3]), 0, 32)
			if err == nil && n > 0 && n < 0xff00 && !seen[uint32(n)] {
				seen[uint32(n)] = true
				ports = append(ports, uint32(n))
			}
		}
	}
	slices.Sort(ports)
	return b.String(), ports
}
