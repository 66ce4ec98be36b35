package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/agent/source"
)

func TestOnlyTroubleThatLastsBecomesAnEvent(t *testing.T) {
	var got []string
	r := reporter{node: "n1", event: func(about source.Ref, kind, reason, message string) {
		got = append(got, about.String()+" "+kind+" "+reason+": "+message)
	}}
	at := time.Unix(1000, 0)
	look := func(after time.Duration, problems ...string) {
		at = at.Add(after)
		r.look(problems, at)
	}
	look(0, "starting")
	look(2 * time.Second)                       // ready
	look(time.Minute)                           // still
	look(time.Second, "OVS is away")            // a restart
	look(14*time.Second, "OVS is away")         // almost
	look(time.Second)                           // it is back: nothing to tell
	look(time.Second, "no podCIDR")             // trouble
	look(15*time.Second, "no podCIDR")          // that lasts
	look(time.Minute, "no podCIDR")             // told already
	look(time.Minute, "no podCIDR", "OVS gone") // other reasons
	look(15*time.Second, "no podCIDR", "OVS gone")
	look(time.Second) // mended
	want := []string{
		"Node/n1 Normal TwillReady: pods of this node can be attached and reached",
		"Node/n1 Warning TwillNotReady: no podCIDR",
		"Node/n1 Warning TwillNotReady: no podCIDR; OVS gone",
		"Node/n1 Normal TwillReady: pods of this node can be attached and reached",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("Events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAWrongClockIsToldOnce(t *testing.T) {
	var got []string
	log, hook := test.NewNullLogger()
	r := clockReporter{node: "n1", log: log, event: func(about source.Ref, kind, reason, message string) {
		got = append(got, about.String()+" "+kind+" "+reason+": "+message)
	}}
	for _, skew := range []time.Duration{0, -time.Minute, -time.Hour, -time.Hour - time.Second, 0, 2 * time.Minute} {
		r.look(skew)
	}
	want := []string{
		"Node/n1 Warning TwillClockSkew: the clock of this node is 1h0m0s behind the API server's: " + source.ClockRemedy,
		"Node/n1 Warning TwillClockSkew: the clock of this node is 2m0s ahead of the API server's: " + source.ClockRemedy,
	}
	if !slices.Equal(got, want) {
		t.Errorf("Events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if n := len(hook.AllEntries()); n != 3 {
		t.Errorf("%d lines in the log, want 3: wrong, right, wrong", n)
	}
}
