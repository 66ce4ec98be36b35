// Package ovsd runs a private Open vSwitch, an ovsdb-server and an ovs-vswitchd of its own, in one
// directory. Tests start one each; the lab starts one for every node.
//
// All state is in the directory: database, pid files, sockets, logs. So one process can Start it and
// another, later, reach it with At and the same Config:
//
//	o, err := ovsd.Start(ctx, ovsd.Config{Dir: "/tmp/n1"})
//	…
//	ovsd.At(ovsd.Config{Dir: "/tmp/n1"}).Stop(ctx)
//
// A test says ForTest(t, ovsd.Config{Dummy: true}) and is done.
//
// Gotchas: the directory is also in the name of every socket, and Linux limits those to 107 bytes, so
// keep it short. Without Dummy, a port of type internal is a tap device of the network namespace that
// the daemon runs in: give NetNS. Any command run beside these daemons needs Env, or it speaks to the
// Open vSwitch of the machine.
package ovsd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Config names one private Open vSwitch.
type Config struct {
	// Dir holds everything; it is made absolute, and created by Start.
	Dir string
	// NetNS is the network namespace of both daemons, as a name for ip-netns(8) or as a path.
	// Empty means the current one.
	NetNS string
	// Dummy starts ovs-vswitchd with --enable-dummy=override: no root and no devices needed, every
	// port that is added succeeds, and no packet leaves.
	Dummy bool
	// Schema is the schema file of the database; empty means Open vSwitch's own.
	Schema string
}

// OVS is one private Open vSwitch, running or not.
type OVS struct{ c Config }

// vswitchSchema is where every distribution's package puts the schema.
const vswitchSchema = "/usr/share/openvswitch/vswitch.ovsschema"

// toolTimeout bounds each command of Open vSwitch that is run here; they take milliseconds.
const toolTimeout = 20 * time.Second

// At describes the Open vSwitch in c.Dir without touching it.
func At(c Config) *OVS {
	if abs, err := filepath.Abs(c.Dir); err == nil {
		c.Dir = abs
	}
	if c.Schema == "" {
		c.Schema = vswitchSchema
	}
	return &OVS{c: c}
}

// Start makes the database if there is none, starts both daemons detached and returns when both
// answer. What runs already is left as it is.
func Start(ctx context.Context, c Config) (*OVS, error) {
	o := At(c)
	if n := len(filepath.Join(o.c.Dir, "ovs-vswitchd.4194304.ctl")); n > 107 {
		return nil, fmt.Errorf("directory %s is too long for unix sockets: shorten it by %d bytes", o.c.Dir, n-107)
	}
	if err := os.MkdirAll(o.c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of Open vSwitch: %w", err)
	}
	if err := o.StartDB(ctx); err != nil {
		return nil, err
	}
	if o.c.Schema != vswitchSchema {
		return o, nil // no ovs-vswitchd can read it
	}
	if err := o.StartDaemon(ctx, false); err != nil {
		return nil, errors.Join(err, o.Stop(ctx))
	}
	return o, nil
}

// RunDir is the directory of sockets and pid files, OVS_RUNDIR.
func (o *OVS) RunDir() string { return o.c.Dir }

// Endpoint is the OVSDB server, as "unix:PATH".
func (o *OVS) Endpoint() string { return "unix:" + o.path("db.sock") }

// Env is what the tools of Open vSwitch need in their environment to speak to this one.
func (o *OVS) Env() []string {
	return []string{
		"OVS_RUNDIR=" + o.c.Dir,
		"OVS_DBDIR=" + o.c.Dir,
		"OVS_LOGDIR=" + o.c.Dir,
		"OVS_SYSCONFDIR=" + o.c.Dir,
	}
}

// Run runs a command with Env, in NetNS, and returns what it printed. It serves for the tools of Open
// vSwitch: o.Run(ctx, "ovs-vsctl", "show").
func (o *OVS) Run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is missing: install openvswitch-switch: %w", name, err)
	}
	argv := append([]string{path}, args...)
	switch ns := o.c.NetNS; {
	case strings.Contains(ns, "/"):
		argv = append([]string{"nsenter", "--net=" + ns, "--"}, argv...)
	case ns != "":
		argv = append([]string{"ip", "netns", "exec", ns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), o.Env()...)
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (o *OVS) path(name string) string { return filepath.Join(o.c.Dir, name) }
