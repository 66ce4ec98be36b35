package main

import (
	"bytes"
	"strings"
	"testing"
)

// try runs a command line in an empty world and returns its exit code, stdout and stderr.
func try(t *testing.T, stdin string, args ...string) (int, string, string) {
	t.Helper()
	t.Setenv("TWILL_LAB_DIR", t.TempDir())
	var stdout, stderr bytes.Buffer
	root := newRoot()
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	code := execute(t.Context(), root, args)
	return code, stdout.String(), stderr.String()
}

func TestWrongUsageIsExitCodeTwoAndSaysWhatIsWrong(t *testing.T) {
	for line, want := range map[string]string{
		"up --nodes many":               `invalid argument "many" for "--nodes"`,
		"up 3":                          "accepts 0 arg(s), received 1",
		"up --no-such-flag":             "unknown flag: --no-such-flag",
		"status -o yaml":                `--output "yaml": must be text or json`,
		"exec a":                        "usage: twill-lab exec POD -- COMMAND",
		"exec a ip addr":                "usage: twill-lab exec POD -- COMMAND",
		"exec -- ip addr":               "usage: twill-lab exec POD -- COMMAND",
		"node exec node-1 --":           "usage: twill-lab node exec NODE -- COMMAND",
		"node":                          "twill-lab node needs a command",
		"node add node-1 node-2":        "accepts at most 1 arg(s), received 2",
		"agent restart node-1":          `unknown command "restart" for "twill-lab agent"`,
		"pod add":                       "accepts 1 arg(s), received 0",
		"pod add a --labels nonsense":   "nonsense must be formatted as key=value",
		"outside exec ip addr":          "usage: twill-lab outside exec -- COMMAND",
		"tunnel":                        "accepts 1 arg(s), received 0",
		"demo --keep=perhaps":           `invalid argument "perhaps" for "--keep"`,
		"no-such-verb":                  `unknown command "no-such-verb"`,
		"down --name":                   "flag needs an argument: --name",
		"ovs start node-1 --restore=on": "unknown flag: --restore",
	} {
		code, _, stderr := try(t, "", strings.Fields(line)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d and %q, want 2 and %q", line, code, stderr, want)
		}
	}
}

func TestAVerbOnALabThatIsNotThereSaysHowToStartOne(t *testing.T) {
	for line, code := range map[string]int{
		"status": 1, "pod add a": 1, "pod rm a": 1, "node add": 1, "agent kill node-1": 1, "ovs kill node-1": 1,
		"tunnel vxlan": 1, "apply -f x.yaml": 1, "exec a -- true": 125, "node exec node-1 -- true": 125, "outside exec -- true": 125,
	} {
		got, _, stderr := try(t, "", append(strings.Fields("--name none"), strings.Fields(line)...)...)
		if got != code || !strings.Contains(stderr, `there is no lab "none": start it with `+"`twill-lab up --name none`") {
			t.Errorf("%s: exit code %d and %q", line, got, stderr)
		}
	}
}

func TestDownOfALabThatIsNotThereIsNoError(t *testing.T) {
	if code, _, stderr := try(t, "", "down", "--name", "none"); code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestHelpListsEveryVerb(t *testing.T) {
	_, stdout, _ := try(t, "", "--help")
	for _, verb := range strings.Fields("up down status pod exec node apply delete agent ovs tunnel demo outside") {
		if !strings.Contains(stdout, "\n  "+verb+" ") {
			t.Errorf("--help does not list %s", verb)
		}
	}
}
