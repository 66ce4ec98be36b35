package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// daemonWatch notices that ovs-vswitchd died or came back. When it restarts alone its flow table is
// empty and OVSDB says nothing about it; two things tell: the control connection breaks at once, and a
// sentinel, one flow looked up each second, is missing.
type daemonWatch struct {
	bridge, runDir string
	log            logrus.FieldLogger
	armed          func() bool        // the table is supposed to be in step
	back           func(cause string) // the table must be read back

	mu     sync.Mutex
	daemon *ovs.Daemon
	why    error
	is     string
	// unfit says why what is there cannot be used.
	unfit error
}

// sentinelInterval bounds the time in which an emptied flow table goes unnoticed.
const sentinelInterval = time.Second

// redialInterval is the pause between attempts to reach an ovs-vswitchd that is away.
const redialInterval = 100 * time.Millisecond

func (w *daemonWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		d, err := ovs.DialDaemon(ctx, w.runDir)
		w.set(d, err)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(redialInterval):
			}
			continue
		}
		w.learnVersion(ctx, d)
		w.back("ovs-vswitchd is there")
		w.attend(ctx, d)
		d.Close()
		if ctx.Err() == nil {
			w.set(nil, errors.New("ovs-vswitchd went away"))
			w.log.Warn("ovs-vswitchd went away; flows are restored as soon as it is back")
		}
	}
}

// learnVersion asks the daemon itself: the version in OVSDB is written by start-up scripts, if at all.
func (w *daemonWatch) learnVersion(ctx context.Context, d *ovs.Daemon) {
	text, err := d.Call(ctx, "version")
	if err != nil {
		return // the connection is going; attend will notice
	}
	text = strings.TrimSpace(text)
	err = errVersion(text)
	switch {
	case errors.Is(err, errNoVersion):
		err = nil // twill check says so; what it cannot do it refuses itself
	case err != nil:
		err = fmt.Errorf("%w: %s", err, remedyOVS())
	}
	w.mu.Lock()
	w.is, w.unfit = text, err
	w.mu.Unlock()
	w.log.WithField("version", text).Info("ovs-vswitchd is there")
}

// learnDatapath asks what the datapath can do, once the bridge is there: true if that is known now.
func (w *daemonWatch) learnDatapath(ctx context.Context, d *ovs.Daemon) bool {
	text, err := d.Call(ctx, "dpif/show-dp-features", w.bridge)
	if err != nil {
		return false
	}
	if err := errFeatures(text); err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.unfit = cmp.Or(w.unfit, fmt.Errorf("%w: %s", err, remedyDatapath))
	}
	return true
}

// fit is nil when ovs-vswitchd and its datapath can do what is asked of them, as far as is known.
func (w *daemonWatch) fit() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unfit
}

// version is what the daemon said of itself last.
func (w *daemonWatch) version() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.is
}

// attend looks at the sentinel until the daemon goes away.
func (w *daemonWatch) attend(ctx context.Context, d *ovs.Daemon) {
	tick := time.NewTicker(sentinelInterval)
	defer tick.Stop()
	known := false // what the datapath can do
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.Done():
			return
		case <-tick.C:
		}
		known = known || w.learnDatapath(ctx, d)
		if !w.armed() {
			continue
		}
		if err := w.sentinel(ctx, d); err != nil {
			w.log.WithError(err).Warn("the sentinel flow is missing")
			w.back("sentinel missing")
		}
	}
}

// sentinel traces a packet that comes from the tunnel without our VNI: it ends in the one drop for
// unknown peers, whatever the World.
func (w *daemonWatch) sentinel(ctx context.Context, d *ovs.Daemon) error {
	ctx, cancel := context.WithTimeout(ctx, sentinelInterval)
	defer cancel()
	text, err := d.Trace(ctx, w.bridge, fmt.Sprintf("in_port=%d", flows.TunnelPort))
	if err != nil {
		return err
	}
	if cookie := fmt.Sprintf("cookie %#x", sentinelCookie()); !strings.Contains(text, cookie) {
		return fmt.Errorf("no flow with %s answers for the tunnel port", cookie)
	}
	return nil
}

// sentinelCookie is the cookie of the pipeline's drop for unknown peers, which depends on no World.
func sentinelCookie() uint64 {
	fs, err := flows.Compile(&flows.World{}, flows.Pipeline)
	if err != nil {
		return 0
	}
	for _, f := range fs {
		if f.Drop == flows.DropUnknownPeer {
			return f.Cookie
		}
	}
	return 0
}

func (w *daemonWatch) set(d *ovs.Daemon, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.daemon, w.why = d, why
}

// current returns the connection to the daemon, or why there is none.
func (w *daemonWatch) current() (*ovs.Daemon, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.daemon == nil && w.why == nil {
		return nil, errors.New("ovs-vswitchd has not been reached yet")
	}
	return w.daemon, w.why
}
