package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestTheClockIsComparedByTheDateOfAnswers(t *testing.T) {
	const date = "Mon, 05 Jan 2026 12:00:00 GMT"
	server, err := http.ParseTime(date)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what       string
		local      time.Duration // after server, when the answer came
		took       time.Duration
		later      time.Duration // since the answer
		set        time.Duration // what somebody has set the clock forward since
		want       time.Duration
		wantSkewed bool
	}{
		{what: "the same"},
		{what: "Date has no parts of a second", local: 999 * time.Millisecond},
		{what: "an answer that took its time", local: 9 * time.Second, took: 8 * time.Second},
		{what: "ahead", local: 3 * time.Minute, want: 179 * time.Second, wantSkewed: true},
		{what: "behind", local: -time.Hour, want: -time.Hour, wantSkewed: true},
		{what: "a little behind", local: -59 * time.Second, want: -59 * time.Second},
		{what: "long ago", later: 24 * time.Hour},
		{what: "set since", local: -time.Hour, later: time.Minute, set: time.Hour},
		{what: "set wrong since", later: time.Minute, set: -time.Hour, want: -time.Hour, wantSkewed: true},
	} {
		boot, wall := 100*time.Second, server.Add(c.local)
		k := &clock{wall: func() time.Time { return wall }, boot: func() time.Duration { return boot }}
		k.hear(boot-c.took, date)
		boot, wall = boot+c.later, wall.Add(c.later+c.set)
		if got, known := k.skew(); got != c.want || !known || Skewed(got) != c.wantSkewed {
			t.Errorf("%s: skew is %s, %t, want %s; skewed %t", c.what, got, known, c.want, Skewed(got))
		}
	}
}

func TestAClockThatHasHeardNothingSaysSo(t *testing.T) {
	k := newClock()
	for _, date := range []string{"", "yesterday"} {
		k.hear(0, date)
		if skew, known := k.skew(); known || skew != 0 {
			t.Errorf("after Date %q: %s, %t", date, skew, known)
		}
	}
}

func TestAServerThatCannotBeUsedBecauseOfTheClockIsExplained(t *testing.T) {
	now := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	silent, behind := newClock(), &clock{wall: func() time.Time { return now }, boot: func() time.Duration { return 0 }}
	behind.hear(0, now.Add(2*time.Hour).Format(http.TimeFormat))
	verification := func(reason x509.InvalidReason) error {
		return &url.Error{Op: "Get", URL: "https://198.51.100.10:6443", Err: &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: reason}}}
	}
	for _, c := range []struct {
		clock *clock
		err   error
		says  string
	}{
		{silent, verification(x509.Expired), "; if the certificate is good, the clock of this node is wrong: set it"},
		{silent, verification(x509.NotAuthorizedToSign), ""},
		{silent, errors.New("connection refused"), ""},
		{behind, errors.New("Unauthorized"), "; the clock of this node is 2h0m0s behind the API server's: set it"},
	} {
		got := c.clock.explain(fmt.Errorf("watch: %w", c.err))
		if !errors.Is(got, c.err) || c.says != "" && !strings.Contains(got.Error(), c.says) || c.says == "" && got.Error() != "watch: "+c.err.Error() {
			t.Errorf("%v is explained as %v, want %q", c.err, got, c.says)
		}
	}
}

func TestTheAPIServersClockIsHeard(t *testing.T) {
	t.Parallel()
	server, w := newAPIServer(t), newWitness(t)
	server.set(apiNode("a", "10.244.1.0/24", "198.51.100.1"))
	server.mu.Lock()
	server.ahead = time.Hour
	server.mu.Unlock()
	a := connected(t, server, w)
	w.until("it is synced", a.Synced)
	if skew, known := a.Skew(); !known || skew > -59*time.Minute || skew < -61*time.Minute {
		t.Errorf("the server is an hour ahead, and the skew is %s, %t", skew, known)
	}
	server.refuse("watch")
	w.until("the loss was seen", func() bool { return a.Alive() != nil })
	if err := a.Alive(); err == nil || !strings.Contains(err.Error(), "behind the API server's: set it") {
		t.Errorf("Alive() = %v, which does not say that the clock is wrong", err)
	}
}
