package agent

import (
	"strings"
	"testing"
	"time"

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
