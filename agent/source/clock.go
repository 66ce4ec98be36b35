package source

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ClockTolerance is how far the clocks of this machine and of the API server may differ before anybody is told: a token of a
// service account is taken that long before it is valid (go-jose, jwt.DefaultLeeway).
const ClockTolerance = time.Minute

// clock compares this machine's clock with the API server's, by the Date of its answers (RFC 9110 §6.6.1). Between answers
// the time since boot goes on counting, so that a clock that is set meanwhile is noticed at once.
type clock struct {
	wall func() time.Time
	boot func() time.Duration

	mu sync.Mutex
	// At boot time at, the server's clock was in [server, server+within]; server is zero before the first answer.
	at     time.Duration
	server time.Time
	within time.Duration
}

func newClock() *clock { return &clock{wall: time.Now, boot: sinceBoot} }

// sinceBoot counts suspended time too, which Go's monotonic time does not (clock_gettime(2)).
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil { // Linux has it since 2.6.39
		return 0
	}
	return time.Duration(t.Nano())
}

// wrap makes the clock listen to all answers that come by a transport.
func (c *clock) wrap(to http.RoundTripper) http.RoundTripper { return &clockTransport{to, c} }

type clockTransport struct {
	http.RoundTripper
	clock *clock
}

func (t *clockTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	began := t.clock.boot()
	answer, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		t.clock.hear(began, answer.Header.Get("Date"))
	}
	return answer, err
}

// WrappedRoundTripper lets client-go find the transport below.
func (t *clockTransport) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

func (c *clock) hear(began time.Duration, date string) {
	server, err := http.ParseTime(date)
	if err != nil {
		return // a proxy may leave it out
	}
	now := c.boot()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.server, c.within = now, server, time.Second+now-began
}

// skew is how far this machine's clock is ahead of the server's, at least; negative when it is behind, 0 when they may agree.
// known is false before the first answer.
func (c *clock) skew() (skew time.Duration, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server.IsZero() {
		return 0, false
	}
	earliest := c.server.Add(c.boot() - c.at)
	local := c.wall().Round(0) // the clock on the wall, not the monotonic one
	switch latest := earliest.Add(c.within); {
	case local.Before(earliest):
		return local.Sub(earliest), true
	case local.After(latest):
		return local.Sub(latest), true
	}
	return 0, true
}

// explain adds to why the server cannot be used what the clock has to do with it.
func (c *clock) explain(err error) error {
	skew, _ := c.skew()
	if problem := SkewProblem(skew); problem != "" {
		return fmt.Errorf("%w; %s", err, problem)
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w; if the certificate is good, the clock of this node is wrong: %s", err, ClockRemedy)
	}
	return err
}

// Skewed is true when a clock is further off than ClockTolerance.
func Skewed(skew time.Duration) bool { return skew.Abs() > ClockTolerance }

// SkewProblem describes a skew and says the remedy; empty for one that is none.
func SkewProblem(skew time.Duration) string {
	if !Skewed(skew) {
		return ""
	}
	return DescribeSkew(skew) + ": " + ClockRemedy
}

// ClockRemedy is what to do about a clock.
const ClockRemedy = "set it (`timedatectl` shows it, chrony or systemd-timesyncd keeps it right)"

// DescribeSkew says by how much the clock of this node is wrong.
func DescribeSkew(skew time.Duration) string {
	where := "ahead of"
	if skew < 0 {
		where = "behind"
	}
	return fmt.Sprintf("the clock of this node is %s %s the API server's", skew.Abs().Round(time.Second), where)
}
