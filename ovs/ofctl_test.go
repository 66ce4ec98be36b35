package ovs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// switchOf is the OpenFlow side of a bridge with one port, p1, number 1.
func switchOf(t testing.TB) *Switch {
	t.Helper()
	o, d := bridged(t)
	if _, err := d.AddPort(testContext(t), "br-twill", Port{Name: "p1", OFPortRequest: 1}); err != nil {
		t.Fatal(err)
	}
	return NewSwitch("br-twill", o.RunDir(), System())
}

const bundle = `group add group_id=1,type=select,bucket=bucket_id:0,actions=ct(commit,table=10,zone=5,nat(dst=198.51.100.1))
flow add cookie=0x10,table=0,priority=100,ip,in_port=1,nw_src=198.51.100.0/24 actions=set_field:0x5->reg0,ct(table=10,zone=65520,nat)
flow add table=0,priority=0 actions=drop
flow add cookie=0xffffffff00000001,table=10,ipv6,ipv6_dst=2001:db8::/64,ct_state=+new-est+trk,reg0=0x5/0xff actions=learn(table=20,priority=5,NXM_OF_ETH_TYPE[]=0x800,load:0x1->NXM_NX_REG1[]),group:1
flow add cookie=0x10,table=30,idle_timeout=600,importance=4,send_flow_rem,reset_counts,actions=normal
`

func TestFlowsReadsBackWhatApplySent(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	if err := s.Apply(ctx, bundle); err != nil {
		t.Fatal(err)
	}
	got, err := s.Flows(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows", got, []Installed{
		{Priority: 100, Cookie: 0x10, Text: "ip,in_port=1,nw_src=198.51.100.0/24", Actions: "set_field:0x5->reg0,ct(table=10,zone=65520,nat)"},
		{Priority: 0, Actions: "drop"},
		{Table: 10, Priority: 32768, Cookie: 0xffffffff00000001, Text: "ct_state=+new-est+trk,ipv6,reg0=0x5/0xff,ipv6_dst=2001:db8::/64",
			Actions: "learn(table=20,priority=5,eth_type=0x800,load:0x1->NXM_NX_REG1[]),group:1"},
		{Table: 30, Priority: 32768, Cookie: 0x10, Actions: "NORMAL"},
	})
	cookies, err := s.Cookies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "cookies", cookies, map[uint64]int{0: 1, 0x10: 2, 0xffffffff00000001: 1})
	groups, err := s.Groups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(groups, "group_id=1,type=select,bucket=bucket_id:0,actions=ct(commit,table=10,zone=5,nat(dst=198.51.100.1))") {
		t.Errorf("dump-groups:\n%s", groups)
	}
	one, err := s.Dump(ctx, "--no-stats", "table=30")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "dump of table 30", one, " cookie=0x10, table=30, idle_timeout=600, send_flow_rem reset_counts importance=4, actions=NORMAL\n")
}

func TestAKilledDaemonComesBackEmptyAndTakesFlowsBeforeTheRestoreIsFinished(t *testing.T) {
	o, d := bridged(t)
	s := NewSwitch("br-twill", o.RunDir(), System())
	ctx := testContext(t)
	cookies := func() map[uint64]int {
		t.Helper()
		got, err := s.Cookies(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if err := s.Apply(ctx, bundle); err != nil {
		t.Fatal(err)
	}
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	expectError(t, s.Apply(ctx, bundle), "ovs-ofctl bundle", "Connection refused")
	if err := o.StartDaemon(ctx, true); err != nil {
		t.Fatal(err)
	}
	expect(t, "what OVSDB says of it", d.Alive(), error(nil))
	expect(t, "bridge repairs", ensure(t, d, spec()), []string(nil))
	expect(t, "flows after the restart", cookies(), map[uint64]int{})
	if err := s.Apply(ctx, bundle); err != nil {
		t.Fatal(err)
	}
	if err := d.FinishRestore(ctx); err != nil {
		t.Fatal(err)
	}
	expect(t, "flows after the restore", cookies(), map[uint64]int{0: 1, 0x10: 2, 0xffffffff00000001: 1})
}

func TestABundleIsAtomicAndItsErrorSaysWhichLine(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	for _, c := range []struct {
		name, bundle, want string
		line               int
	}{
		{"a word it does not know", "flow add table=0,actions=drop\nflow add table=0,nonsense=1,actions=drop\n",
			"unknown keyword nonsense (line 2: flow add table=0,nonsense=1,actions=drop)", 2},
		{"a table behind", "flow add table=0,actions=drop\nflow add table=10,tcp,actions=goto_table:5\n",
			"actions are invalid with specified match (OFPBIC_BAD_TABLE_ID) (line 2: flow add table=10,tcp,actions=goto_table:5)", 2},
		{"a group that is not there", "flow add table=0,actions=drop\nflow add table=0,priority=7,actions=group:99\n",
			"the switch refused OFPT_FLOW_MOD: OFPBAC_BAD_OUT_GROUP: ADD priority=7 actions=group:99", 0},
		{"a group twice", "flow add table=0,actions=drop\ngroup add group_id=1,type=all\ngroup add group_id=1,type=all\n",
			"the switch refused OFPT_GROUP_MOD: OFPGMFC_GROUP_EXISTS: ADD group_id=1,type=all", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := s.Apply(ctx, c.bundle)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v; want an *Error", err)
			}
			expect(t, "the error", err.Error(), "ovs-ofctl bundle "+s.target+": "+c.want)
			expect(t, "the line", e.Line, c.line)
			cookies, err := s.Cookies(ctx)
			if err != nil {
				t.Fatal(err)
			}
			expect(t, "flows afterwards", cookies, map[uint64]int{})
		})
	}
}

func TestABridgeThatIsNotThereIsNamed(t *testing.T) {
	o, _ := start(t)
	_, err := NewSwitch("br-none", o.RunDir(), System()).Flows(testContext(t))
	expectError(t, err, "ovs-ofctl dump-flows unix:"+o.RunDir()+"/br-none.mgmt", "No such file or directory")
}

func TestAnEndedContextEndsTheCommand(t *testing.T) {
	s := switchOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Apply(ctx, bundle); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want context.Canceled in the chain", err)
	}
}

func TestAnEmptyBundleRunsNothing(t *testing.T) {
	x := &recorder{}
	if err := NewSwitch("br", "/run", x).Apply(t.Context(), " \n"); err != nil {
		t.Fatal(err)
	}
	expect(t, "commands", x.ran, []string(nil))
}

func TestTheCommandsAreTheseAndWithoutTheToolTheRemedyIsNamed(t *testing.T) {
	x := &recorder{}
	s := NewSwitch("br", "/run/x", x)
	ctx := t.Context()
	_, err := s.Dump(ctx, "--names", "table=3")
	if err = errors.Join(err, s.Apply(ctx, "flow add actions=drop\n")); err != nil {
		t.Fatal(err)
	}
	expect(t, "commands", x.ran, []string{
		"/bin/ovs-ofctl -O OpenFlow15 -vconsole:off --names dump-flows unix:/run/x/br.mgmt table=3",
		"/bin/ovs-ofctl -O OpenFlow15 -vconsole:off --no-names bundle unix:/run/x/br.mgmt - < flow add actions=drop\n",
	})
	x.missing = true
	expectError(t, s.Apply(ctx, "flow add actions=drop"), "install openvswitch-switch")
}

// recorder is an Executor that only remembers.
type recorder struct {
	ran     []string
	missing bool
}

func (r *recorder) LookPath(program string) (string, error) {
	if r.missing {
		return "", errors.New("not found")
	}
	return "/bin/" + program, nil
}

func (r *recorder) Run(_ context.Context, stdin io.Reader, path string, args ...string) (string, string, error) {
	said := path + " " + strings.Join(args, " ")
	if stdin != nil {
		b, err := io.ReadAll(stdin)
		if err != nil {
			return "", "", err
		}
		said += fmt.Sprintf(" < %s", b)
	}
	r.ran = append(r.ran, said)
	return "", "", nil
}
