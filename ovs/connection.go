package ovs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/twill-net/twill/ovs/openflow"
)

// connection is an OpenFlow connection to a switch that stays open from one bundle to the next. ovs-ofctl makes one for
// each, after its own start, and the switch answers it in four turns of its main loop; here it is one turn. When no
// bundle has come for a while it is closed: ovs-vswitchd looks at every connection in each turn, and on the userspace
// datapath, where packets wait for those turns, an idle one costs some percent of their round trip.
type connection struct {
	mu     sync.Mutex      // held while a bundle is under way
	life   context.Context // nil: nobody asked for a connection
	open   *channel        // nil: there is none yet, or it was lost
	idle   *time.Timer     // closes it
	bundle uint32          // number of the last bundle
	xid    uint32          // last transaction number
}

// KeepConnected has Apply use one connection until ctx ends. It is opened by the first Apply, and again when it was lost.
func (s *Switch) KeepConnected(ctx context.Context) {
	s.connection.mu.Lock()
	defer s.connection.mu.Unlock()
	s.connection.life = ctx
}

// idleAfter is how long a connection stays open after a bundle: the next change of many is there by then.
const idleAfter = 5 * time.Second

// rest closes the connection later, unless another bundle comes. c.mu is held.
func (c *connection) rest() {
	if c.idle != nil {
		c.idle.Stop()
	}
	this := c.open
	c.idle = time.AfterFunc(idleAfter, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.open == this {
			this.close()
			c.open = nil
		}
	})
}

// applyDirectly applies a bundle by the connection. done is false when that cannot be: nobody asked for a connection, a
// line has words that package openflow does not write, the switch is not there, or it refused the bundle. All of these
// are for ovs-ofctl, which either succeeds or has the words for why not. It may be given a bundle that the switch has
// taken already, when the connection ended before the answer: a bundle says what is to be, not what is to change.
func (s *Switch) applyDirectly(ctx context.Context, bundle string) (done bool, err error) {
	c := &s.connection
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life == nil || c.life.Err() != nil {
		return false, nil
	}
	messages, commit, err := c.write(bundle)
	if err != nil {
		return false, nil
	}
	if c.open == nil || c.open.gone() {
		if c.open, err = dialSwitch(ctx, c.life, strings.TrimPrefix(s.target, "unix:")); err != nil {
			return false, nil
		}
	}
	if err := c.open.do(ctx, messages, commit); err != nil {
		c.open.close()
		c.open = nil
		return ctx.Err() != nil, ctx.Err()
	}
	c.rest()
	return true, nil
}

// write makes the messages of a bundle, opened and committed; commit is the transaction number of the last.
func (c *connection) write(bundle string) (messages []byte, commit uint32, err error) {
	c.bundle++
	next := func() uint32 { c.xid++; return c.xid }
	messages = openflow.BundleControl(next(), c.bundle, openflow.BundleOpen)
	for line := range strings.Lines(bundle) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		m, err := openflow.Line(line)
		if err != nil {
			return nil, 0, err
		}
		messages = append(messages, openflow.BundleAdd(next(), c.bundle, m)...)
	}
	return append(messages, openflow.BundleControl(next(), c.bundle, openflow.BundleCommit)...), c.xid, nil
}

// channel is one OpenFlow connection, past its greeting. Somebody reads it all the time: the switch asks for signs of
// life, and stops reading from one who does not read.
type channel struct {
	conn    net.Conn
	close   context.CancelFunc
	answers chan answer
}

// answer is what ends a bundle: an error of the switch, or that it was committed.
type answer struct {
	xid uint32
	err error
}

// dialSwitch connects and greets within ctx. The channel lives until life ends, close is called or the switch goes.
func dialSwitch(ctx, life context.Context, path string) (*channel, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(life)
	context.AfterFunc(life, func() { conn.Close() })
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &channel{conn: conn, close: end, answers: make(chan answer, 1)}
	in := bufio.NewReader(conn)
	if err = c.greet(in); err != nil {
		end()
		return nil, err
	}
	go c.read(in)
	return c, nil
}

// greet exchanges OFPT_HELLO: OpenFlow 1.5 and no other (OpenFlow 1.5.1, 6.3.1).
func (c *channel) greet(in io.Reader) error {
	only := []byte{0, 1, 0, 8, 0, 0, 0, 1 << openflow.Version} // OFPHET_VERSIONBITMAP
	if _, err := c.conn.Write(openflow.Message(openflow.TypeHello, 0, only)); err != nil {
		return err
	}
	kind, _, _, err := receive(in)
	if err == nil && kind != openflow.TypeHello {
		err = fmt.Errorf("the switch begins with a message of type %d", kind)
	}
	return err
}

// read takes what the switch sends until the connection ends, and then gives back what it held. Of errors the first is
// kept: what follows it says that the bundle failed.
func (c *channel) read(in io.Reader) {
	defer close(c.answers)
	defer c.close()
	for {
		kind, xid, body, err := receive(in)
		if err != nil {
			return
		}
		var a answer
		switch {
		case kind == openflow.TypeEchoRequest:
			if _, err := c.conn.Write(openflow.Message(openflow.TypeEchoReply, xid, body)); err != nil {
				return
			}
			continue
		case kind == openflow.TypeError:
			a = answer{xid, errors.New("the switch refused a message")}
		case kind == openflow.TypeBundleControl && len(body) >= 6 && binary.BigEndian.Uint16(body[4:]) == openflow.BundleCommitted:
			a = answer{xid, nil}
		default:
			continue
		}
		select {
		case c.answers <- a:
		default:
		}
	}
}

// gone is true once the switch has ended the connection.
func (c *channel) gone() bool {
	select {
	case _, open := <-c.answers:
		return !open
	default:
		return false
	}
}

// do sends messages and waits until the one with the transaction number commit is answered.
func (c *channel) do(ctx context.Context, messages []byte, commit uint32) error {
	defer context.AfterFunc(ctx, c.close)()
	if _, err := c.conn.Write(messages); err != nil {
		return err
	}
	a, open := <-c.answers
	switch {
	case !open:
		return io.ErrUnexpectedEOF
	case a.err == nil && a.xid != commit:
		return fmt.Errorf("the switch answers to %d in place of %d", a.xid, commit)
	}
	return a.err
}

// receive reads one message.
func receive(in io.Reader) (kind uint8, xid uint32, body []byte, err error) {
	var head [openflow.HeaderSize]byte
	if _, err = io.ReadFull(in, head[:]); err != nil {
		return 0, 0, nil, err
	}
	length := int(binary.BigEndian.Uint16(head[2:]))
	if head[0] != openflow.Version || length < len(head) {
		return 0, 0, nil, fmt.Errorf("the switch sends %x, which is no header of OpenFlow 1.5", head)
	}
	body = make([]byte, length-len(head))
	_, err = io.ReadFull(in, body)
	return head[1], binary.BigEndian.Uint32(head[4:]), body, err
}
