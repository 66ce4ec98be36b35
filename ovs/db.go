package ovs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// Config says where OVSDB is.
type Config struct {
	// Endpoint is the socket of the OVSDB server, as in ovsdb(7): "unix:/run/openvswitch/db.sock".
	Endpoint string
	// Log receives the loss and the return of the connection; nil means nobody wants to know.
	Log logrus.FieldLogger
}

// DB is a connection to OVSDB that mends itself, with a copy of the rows that matter.
type DB struct {
	config Config
	log    logrus.FieldLogger
	life   context.Context
	end    context.CancelFunc
	ended  chan struct{}

	changed chan struct{}
	batch   batcher
	// transactions counts what was committed.
	transactions atomic.Uint64

	mu sync.Mutex
	// session is the present connection or, while lost is not nil, the last one: its cache still
	// answers reads, so that a restart of ovsdb-server never looks as if all ports were gone.
	session *session
	lost    error
	// moved is closed, and replaced, whenever a row or the connection changes.
	moved chan struct{}
}

const (
	// attemptTimeout bounds one attempt to connect and to read all rows.
	attemptTimeout = 10 * time.Second
	// The pause between attempts grows from the one to the other.
	firstPause, longestPause = 50 * time.Millisecond, time.Second
)

// Dial connects to OVSDB and returns when all rows are known. While the server does not answer it
// tries again until ctx ends; its error then names the endpoint, the last cause and the remedy. A
// server with another schema is an error at once. Afterwards the connection is remade whenever it is
// lost, until Close; ctx has no part in that.
func Dial(ctx context.Context, c Config) (*DB, error) {
	d := &DB{
		config: c, log: c.Log,
		ended:   make(chan struct{}),
		changed: make(chan struct{}, 1),
		moved:   make(chan struct{}),
	}
	if d.log == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		d.log = quiet
	}
	d.life, d.end = context.WithCancel(context.WithoutCancel(ctx))
	said := false
	s, err := d.connect(ctx, func(err error) bool {
		if errors.Is(err, errSchema) {
			return false
		}
		if !said {
			d.log.WithError(err).Info("waiting for OVSDB")
			said = true
		}
		return true
	})
	if err != nil {
		d.end()
		return nil, err
	}
	d.batch.commit, d.batch.pace = d.commitCounted, d.pace
	d.session = s
	go d.run(s)
	return d, nil
}

// Close ends the connection. Waiting calls return an error.
func (d *DB) Close() {
	d.end()
	<-d.ended
}

// Changed is kicked when any row that matters changed and when the connection came back. Kicks that
// nobody has taken yet merge into one. There is one channel: it is for one reader.
func (d *DB) Changed() <-chan struct{} { return d.changed }

// Alive is nil while connected, with all rows known; otherwise it is the reason.
func (d *DB) Alive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

// Transactions counts the transactions that were committed since Dial.
func (d *DB) Transactions() uint64 { return d.transactions.Load() }

// run replaces the session each time that it is lost.
func (d *DB) run(s *session) {
	defer close(d.ended)
	for {
		select {
		case <-s.gone:
		case <-d.life.Done():
			d.setLost(fmt.Errorf("OVSDB at %s: the connection was closed", d.config.Endpoint))
			s.close()
			return
		}
		d.setLost(fmt.Errorf("OVSDB at %s: connection lost; %s", d.config.Endpoint, remedyRunning))
		d.log.WithField("endpoint", d.config.Endpoint).Warn("OVSDB connection lost, reconnecting")
		began := time.Now()
		next, err := d.connect(d.life, func(err error) bool { d.setLost(err); return true })
		if err != nil {
			return // only because of Close
		}
		s = next
		d.mu.Lock()
		d.session, d.lost = s, nil
		d.mu.Unlock()
		d.kick()
		d.log.WithFields(logrus.Fields{"endpoint": d.config.Endpoint, "took": time.Since(began).Round(time.Millisecond)}).
			Info("OVSDB connected again")
	}
}

// connect tries until it succeeds, ctx ends, or again says no to the error of the last attempt.
func (d *DB) connect(ctx context.Context, again func(error) bool) (*session, error) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		s, err := dialSession(attempt, d.life, d.config.Endpoint, d.kick)
		cancel()
		if err == nil {
			return s, nil
		}
		if !again(err) {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (gave up: %w)", err, ctx.Err())
		}
	}
}

func (d *DB) setLost(err error) {
	d.mu.Lock()
	d.lost = err
	d.mu.Unlock()
	d.kick()
}

// kick wakes the reader of Changed and everybody who waits in await.
func (d *DB) kick() {
	d.mu.Lock()
	close(d.moved)
	d.moved = make(chan struct{})
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// await calls done now and after each change, until it says true or returns an error.
func (d *DB) await(ctx context.Context, done func() (bool, error)) error {
	for {
		d.mu.Lock()
		moved := d.moved // taken before looking, so that no change falls between
		d.mu.Unlock()
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-d.life.Done():
			return fmt.Errorf("OVSDB at %s: the connection was closed", d.config.Endpoint)
		}
	}
}
