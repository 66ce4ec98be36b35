package ovs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/ovs/openflow"
)

// without is System without one command of ovs-ofctl: whoever runs that fails.
type without struct {
	Executor
	command string
}

func (w without) Run(ctx context.Context, stdin io.Reader, path string, args ...string) (string, string, error) {
	if slices.Contains(args, w.command) {
		return "", "", fmt.Errorf("%s was run", w.command)
	}
	return w.Executor.Run(ctx, stdin, path, args...)
}

func TestAConnectionAppliesBundlesWithoutAProcess(t *testing.T) {
	s := switchOf(t)
	s.exec = without{System(), "bundle"}
	ctx := testContext(t)
	s.KeepConnected(ctx)
	var first *channel
	for i := range 3 {
		bundle := fmt.Sprintf("group add_or_mod group_id=%d,type=select,selection_method=dp_hash,bucket=bucket_id:1,weight:100,actions=output:1\n"+
			"flow add cookie=%d,table=%d,priority=7,ip actions=group:%d\n", i+1, i+1, i, i+1)
		if err := s.Apply(ctx, bundle); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = s.connection.open
		}
	}
	if err := s.Apply(ctx, "flow delete cookie=2/-1\ngroup delete group_id=2\n"); err != nil {
		t.Fatal(err)
	}
	cookies, err := s.Cookies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows", cookies, map[uint64]int{1: 1, 3: 1})
	groups, err := s.Groups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(groups, "group_id=") != 2 || strings.Contains(groups, "group_id=2,") {
		t.Errorf("groups:\n%s", groups)
	}
	if first == nil || s.connection.open != first {
		t.Error("each bundle had a connection of its own")
	}
}

func TestWhatAConnectionCannotSayOrTheSwitchRefusesIsForOVSOFCtl(t *testing.T) {
	s := switchOf(t)
	ctx := testContext(t)
	s.KeepConnected(ctx)
	if err := s.Apply(ctx, "flow add cookie=0x5,table=3 actions=learn(table=20,priority=5,NXM_OF_ETH_TYPE[]=0x800)\n"); err != nil {
		t.Fatal(err)
	}
	err := s.Apply(ctx, "flow add cookie=0x6,table=0 actions=drop\nflow add cookie=0x7,table=0,priority=7 actions=group:99\n")
	expectError(t, err, "the switch refused OFPT_FLOW_MOD: OFPBAC_BAD_OUT_GROUP: ADD priority=7 cookie:0x7 actions=group:99")
	err = s.Apply(ctx, "flow add cookie=0x6,table=0 actions=drop\nflow add cookie=0x7,table=9 actions=goto_table:5\n")
	expectError(t, err, "OFPBIC_BAD_TABLE_ID", "line 2: flow add cookie=0x7,table=9 actions=goto_table:5")
	s.exec = without{System(), "bundle"}
	if err := s.Apply(ctx, "flow add cookie=0x8,table=0 actions=drop\n"); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
	cookies, err := s.Cookies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "flows", cookies, map[uint64]int{5: 1, 8: 1})
}

func TestAConnectionIsMadeAgainWhenTheDaemonComesBack(t *testing.T) {
	o, _ := bridged(t)
	s := NewSwitch("br-twill", o.RunDir(), System())
	ctx := testContext(t)
	s.KeepConnected(ctx)
	const one = "flow add cookie=0x1,table=0 actions=drop\n"
	if err := s.Apply(ctx, one); err != nil {
		t.Fatal(err)
	}
	first := s.connection.open
	if err := o.KillDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	expectError(t, s.Apply(ctx, one), "ovs-ofctl bundle", "Connection refused")
	if err := o.StartDaemon(ctx, false); err != nil {
		t.Fatal(err)
	}
	s.exec = without{System(), "bundle"}
	if err := s.Apply(ctx, one); err != nil {
		t.Fatal(err)
	}
	if _, err := first.conn.Write(hello()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection of before still has its descriptor: %v", err)
	}
}

// fakeSwitch listens at the management socket of a bridge and speaks as serve does.
func fakeSwitch(t *testing.T, serve func(c net.Conn)) (*Switch, *recorder) {
	t.Helper()
	dir, x := t.TempDir(), &recorder{}
	l, err := net.Listen("unix", filepath.Join(dir, "br.mgmt"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
	return NewSwitch("br", dir, x), x
}

const drop = "flow add cookie=0x1,table=0 actions=drop\n"

func hello() []byte { return openflow.Message(openflow.TypeHello, 0, nil) }

// until reads messages up to the first of a type, and returns it.
func until(c net.Conn, kind uint8) (xid uint32, body []byte, err error) {
	for {
		k, xid, body, err := receive(c)
		if err != nil || k == kind {
			return xid, body, err
		}
	}
}

// committed reads a whole bundle and returns the answer to its commit.
func committed(c net.Conn) ([]byte, error) {
	if _, _, err := until(c, openflow.TypeBundleAdd); err != nil {
		return nil, err
	}
	xid, body, err := until(c, openflow.TypeBundleControl)
	if err != nil {
		return nil, err
	}
	body[5] = openflow.BundleCommitted
	return openflow.Message(openflow.TypeBundleControl, xid, body), nil
}

// servesOne is a switch that takes one bundle of a connection, and then tells how that ended.
func servesOne(closed chan<- error) func(c net.Conn) {
	return func(c net.Conn) {
		_, _ = c.Write(hello())
		done, _ := committed(c)
		_, _ = c.Write(done)
		_, _, _, err := receive(c)
		closed <- err
	}
}

func TestAConnectionShowsThatItLives(t *testing.T) {
	said := make(chan []byte, 1)
	s, x := fakeSwitch(t, func(c net.Conn) {
		_, _ = c.Write(hello())
		done, err := committed(c)
		if err != nil {
			return
		}
		_, _ = c.Write(openflow.Message(openflow.TypeEchoRequest, 77, []byte("are you there?")))
		_, body, _ := until(c, openflow.TypeEchoReply)
		said <- body
		_, _ = c.Write(done)
		_, _, _, _ = receive(c)
	})
	s.KeepConnected(t.Context())
	if err := s.Apply(testContext(t), drop); err != nil {
		t.Fatal(err)
	}
	expect(t, "ovs-ofctl", x.ran, []string(nil))
	if body := <-said; !bytes.Equal(body, []byte("are you there?")) {
		t.Errorf("the echo is %q", body)
	}
}

func TestASwitchThatDoesNotAnswerIsWaitedForAsLongAsTheCallerWants(t *testing.T) {
	arrived, closed := make(chan bool, 1), make(chan bool, 1)
	s, x := fakeSwitch(t, func(c net.Conn) {
		_, _ = c.Write(hello())
		if _, err := committed(c); err == nil {
			arrived <- true
			_, _, _, _ = receive(c)
			closed <- true
		}
	})
	s.KeepConnected(t.Context())
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { <-arrived; cancel() }()
	if err := s.Apply(ctx, drop); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-closed // or what comes late would be taken for the answer to the next bundle
	expect(t, "ovs-ofctl", x.ran, []string(nil))
}

func TestAConnectionEndsWithItsContext(t *testing.T) {
	closed := make(chan error, 1)
	s, x := fakeSwitch(t, servesOne(closed))
	ctx, cancel := context.WithCancel(t.Context())
	s.KeepConnected(ctx)
	if err := s.Apply(testContext(t), drop); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-closed:
		if !errors.Is(err, io.EOF) {
			t.Errorf("the switch reads %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the connection is still open")
	}
	if err := s.Apply(testContext(t), drop); err != nil {
		t.Fatal(err)
	}
	expect(t, "runs of ovs-ofctl without a connection", len(x.ran), 1)
}

func TestAConnectionWithoutBundlesIsClosedAndMadeAgain(t *testing.T) {
	closed := make(chan error, 2)
	s, x := fakeSwitch(t, servesOne(closed))
	s.KeepConnected(t.Context())
	for range 2 {
		if err := s.Apply(testContext(t), drop); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-closed:
			if !errors.Is(err, io.EOF) {
				t.Errorf("the switch reads %v", err)
			}
		case <-time.After(4 * idleAfter):
			t.Fatal("the connection is still open")
		}
	}
	expect(t, "ovs-ofctl", x.ran, []string(nil))
}

func TestASwitchThatSpeaksOtherwiseIsForOVSOFCtl(t *testing.T) {
	for name, serve := range map[string]func(c net.Conn){
		"another version": func(c net.Conn) { _, _ = c.Write([]byte{4, 0, 0, 8, 0, 0, 0, 0}) },
		"no greeting":     func(c net.Conn) { _, _ = c.Write(openflow.Message(openflow.TypeEchoRequest, 0, nil)) },
		"a short message": func(c net.Conn) { _, _ = c.Write([]byte{6, 0, 0, 7, 0, 0, 0, 0}) },
		"silence":         func(net.Conn) {},
		"an early end":    func(c net.Conn) { _, _ = c.Write(hello()); _, _, _ = until(c, openflow.TypeBundleAdd) },
		"another commit": func(c net.Conn) {
			_, _ = c.Write(hello())
			done, _ := committed(c)
			done[7]++
			_, _ = c.Write(done)
			_, _, _, _ = receive(c)
		},
		"an error": func(c net.Conn) {
			_, _ = c.Write(hello())
			done, _ := committed(c)
			_, _ = c.Write(append(openflow.Message(openflow.TypeError, 2, make([]byte, 4)), done...))
			_, _, _, _ = receive(c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, x := fakeSwitch(t, serve)
			s.KeepConnected(t.Context())
			if err := s.Apply(testContext(t), drop); err != nil {
				t.Fatal(err)
			}
			expect(t, "runs of ovs-ofctl", len(x.ran), 1)
		})
	}
}

// BenchmarkApply is one flow, and many, by the connection and by ovs-ofctl.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1, 1000} {
		for _, way := range []string{"connection", "ovs-ofctl"} {
			b.Run(fmt.Sprintf("%d/%s", n, way), func(b *testing.B) {
				s := switchOf(b)
				if way == "connection" {
					s.KeepConnected(b.Context())
				}
				var bundle strings.Builder
				for i := range n {
					fmt.Fprintf(&bundle, "flow add cookie=%#x,table=0,priority=100,in_port=%d,ip,nw_dst=198.18.%d.%d actions=set_field:0x1->reg1,goto_table:90\n", i, i, i>>8, i&255)
				}
				for b.Loop() {
					if err := s.Apply(b.Context(), bundle.String()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
