package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"

	"github.com/twill-net/twill/ovs"
	"github.com/twill-net/twill/test/ovsd"
)

func TestAnOldOpenVSwitchIsRefusedByItsVersion(t *testing.T) {
	for text, says := range map[string]string{
		"ovs-vswitchd (Open vSwitch) 3.1.0":           "",
		"ovs-vswitchd (Open vSwitch) 3.10.0-1.fc43":   "",
		"ovs-vswitchd (Open vSwitch) 4.0.1":           "",
		"ovs-vswitchd (Open vSwitch) 3.0.5":           "3.0.5 is too old",
		"ovs-vswitchd (Open vSwitch) 2.17.9":          "2.17.9 is too old",
		"ovs-vswitchd (Open vSwitch) from a checkout": "no version",
		"": "no version",
	} {
		err := errVersion(text)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

func TestADatapathThatLacksAFeatureIsRefused(t *testing.T) {
	const able = "Masked set action: Yes\nMax VLAN headers: 1\nRecirc: Yes\nCT state: Yes\nCT zone: Yes\nCT mark: Yes\nCT label: No\nCT state NAT: Yes\n"
	if err := errFeatures(able); err != nil {
		t.Errorf("what nobody needs is missed: %v", err)
	}
	lacks := strings.NewReplacer("CT mark: Yes", "CT mark: No", "CT state NAT: Yes", "CT state NAT: No").Replace(able)
	if err := errFeatures(lacks); err == nil || err.Error() != "the datapath cannot do CT mark, CT state NAT" {
		t.Errorf("lacking two: %v", err)
	}
}

// TestWhatTheDaemonCanDoIsAsked: a real one has the words that we look for.
func TestWhatTheDaemonCanDoIsAsked(t *testing.T) {
	o := ovsd.ForTest(t, ovsd.Config{Dummy: true})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	log, _ := test.NewNullLogger()
	d, err := ovs.DialDaemon(ctx, o.RunDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	w := &daemonWatch{bridge: "br-twill", runDir: o.RunDir(), log: log}
	w.learnVersion(ctx, d)
	if w.learnDatapath(ctx, d) {
		t.Error("it knows what the datapath of no bridge can do")
	}
	if _, err := o.Run(ctx, "ovs-vsctl", "--timeout=10", "add-br", "br-twill"); err != nil {
		t.Fatal(err)
	}
	if !w.learnDatapath(ctx, d) || w.fit() != nil {
		t.Errorf("fit() = %v", w.fit())
	}
	text, err := d.Call(ctx, "dpif/show-dp-features", "br-twill")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range neededFeatures() {
		if !strings.Contains(text, "\n"+f+": Yes\n") {
			t.Errorf("Open vSwitch does not speak of %q in\n%s", f, text)
		}
	}
}
