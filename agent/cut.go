package agent

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// cutter ends connections that policies have begun to forbid. Flows look at every packet of the direction in
// which a connection was opened, so that a change is in force with its bundle; what answers is let through by
// connection tracking alone. So after each change of policies the entries of their zone are judged anew, and
// exactly those that are now forbidden are deleted: what still answers then meets the policies itself.
type cutter struct {
	daemon func() (*ovs.Daemon, error)
	log    logrus.FieldLogger
	cut    func(n int)
	kicks  chan struct{}
	world  atomic.Pointer[flows.World] // in force now
}

func newCutter(c *cutter) *cutter {
	c.kicks = make(chan struct{}, 1)
	return c
}

// kick asks for a look with the World that has just come into force. It never blocks.
func (c *cutter) kick(w *flows.World) {
	c.world.Store(w)
	select {
	case c.kicks <- struct{}{}:
	default:
	}
}

// cutWithin bounds one look at the connections.
const cutWithin = 10 * time.Second

// run looks at the connections whenever it is kicked, until ctx ends. A look that fails is repeated.
func (c *cutter) run(ctx context.Context) {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.kicks:
		case <-retry.C:
		}
		look, cancel := context.WithTimeout(ctx, cutWithin)
		n, err := c.look(look)
		cancel()
		if n > 0 {
			c.cut(n)
			c.log.WithField("connections", n).Info("ended connections that policies no longer allow")
		}
		if err != nil && ctx.Err() == nil {
			c.log.WithError(err).Warn("connections that policies no longer allow could not be ended; trying again")
			retry.Reset(time.Second)
		}
	}
}

// look judges every connection that policies know, and deletes those that are forbidden.
func (c *cutter) look(ctx context.Context) (cut int, err error) {
	w := c.world.Load()
	d, err := c.daemon()
	if err != nil || w == nil {
		return 0, err
	}
	// Until the datapath has followed, packets may still open connections by the flows of before.
	judge := flows.NewJudge(w)
	err = d.AfterRevalidation(ctx, func(ctx context.Context) error {
		n, err := cutOnce(ctx, d, judge)
		cut += n
		return err
	})
	return cut, err
}

// cutOnce judges the connections that there are now.
func cutOnce(ctx context.Context, d *ovs.Daemon, judge *flows.Judge) (cut int, err error) {
	entries, err := entriesOf(ctx, d, flows.PolicyZone)
	if err != nil {
		return 0, err
	}
	for e := range entries {
		if judge.Decide(e.tuple).Allowed {
			continue
		}
		if err := d.ForgetConnection(ctx, flows.PolicyZone, e.selector()); err != nil {
			return cut, err
		}
		cut++
	}
	return cut, nil
}

// entry is one connection as dpctl/dump-conntrack prints it.
type entry struct {
	tuple    flows.Tuple
	protocol string
	fields   map[string]string
	reply    map[string]string // of the direction of answers
}

// entriesOf are the connections of a zone that there are now.
func entriesOf(ctx context.Context, d *ovs.Daemon, zone uint16) (iter.Seq[entry], error) {
	text, err := d.Call(ctx, "dpctl/dump-conntrack", fmt.Sprintf("zone=%d", zone))
	if err != nil {
		return nil, err
	}
	return func(yield func(entry) bool) {
		for line := range strings.Lines(text) {
			if e, ok := parseEntry(line); ok && !yield(e) {
				return
			}
		}
	}, nil
}

// parseEntry reads "tcp,orig=(src=…,dst=…,sport=…,dport=…),reply=(…),…"; of ICMP it has id, type and code.
func parseEntry(line string) (entry, bool) {
	protocol, rest, ok := strings.Cut(strings.TrimSpace(line), ",orig=(")
	original, rest, closed := strings.Cut(rest, ")")
	if !ok || !closed {
		return entry{}, false
	}
	answers, _, _ := strings.Cut(strings.TrimPrefix(rest, ",reply=("), ")")
	e := entry{protocol: protocol, fields: ovs.Fields(original), reply: ovs.Fields(answers)}
	var err1, err2 error
	e.tuple.Source, err1 = netip.ParseAddr(e.fields["src"])
	e.tuple.Destination, err2 = netip.ParseAddr(e.fields["dst"])
	if err1 != nil || err2 != nil {
		return entry{}, false
	}
	port, _ := strconv.ParseUint(e.fields["dport"], 10, 16) // ICMP has none
	e.tuple.Port, e.tuple.Protocol = uint16(port), protocolNumber(protocol)
	return e, true
}

func protocolNumber(name string) uint8 {
	if n, ok := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}[name]; ok {
		return n
	}
	n, _ := strconv.ParseUint(name, 10, 8) // one that has no name here has no ports either
	return uint8(n)
}

// selector is the entry in the words of dpctl/flush-conntrack (ovs-vswitchd(8)).
func (e entry) selector() string {
	family := "nw"
	if e.tuple.Source.Is6() {
		family = "ipv6"
	}
	s := fmt.Sprintf("ct_%s_src=%s,ct_%s_dst=%s,ct_nw_proto=%d", family, e.tuple.Source, family, e.tuple.Destination, e.tuple.Protocol)
	for _, f := range [][2]string{{"sport", "ct_tp_src"}, {"dport", "ct_tp_dst"}, {"type", "icmp_type"}, {"code", "icmp_code"}, {"id", "icmp_id"}} {
		if v, ok := e.fields[f[0]]; ok {
			s += "," + f[1] + "=" + v
		}
	}
	return s
}
