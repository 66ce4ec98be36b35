package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// oldestOVS is the first Open vSwitch that does all that agents ask of it: connections are forgotten by a part of their
// tuple (dpctl/flush-conntrack of 3.1, ovs-vswitchd(8)). Tests run on it.
func oldestOVS() (major, minor int) { return 3, 1 }

// remedyOVS is what to do about an older one.
func remedyOVS() string {
	major, minor := oldestOVS()
	return fmt.Sprintf("install Open vSwitch %d.%d or later", major, minor)
}

// errNoVersion is that of an ovs-vswitchd of somebody's own making, which may do everything.
var errNoVersion = errors.New("that is no version")

// errVersion says what is wrong with a version as ovs-vswitchd prints it; nil if it will do.
func errVersion(text string) error {
	last := text[strings.LastIndexByte(text, ' ')+1:]
	major, minor, ok := version(last)
	oldMajor, oldMinor := oldestOVS()
	switch {
	case !ok:
		return fmt.Errorf("it says that it is %q: %w", text, errNoVersion)
	case cmp.Or(cmp.Compare(major, oldMajor), cmp.Compare(minor, oldMinor)) < 0:
		return fmt.Errorf("%s is too old", text)
	}
	return nil
}

func version(text string) (major, minor int, ok bool) {
	parts := strings.SplitN(text, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return major, minor, err1 == nil && err2 == nil
}

// neededFeatures are what the flows need of a datapath, in the words of dpif/show-dp-features. The kernel's has all since
// Linux 4.6. Whatever else is missing, ovs-vswitchd does by itself, more slowly.
func neededFeatures() []string {
	return []string{"Recirc", "CT state", "CT zone", "CT mark", "CT state NAT"}
}

// remedyDatapath is what to do about a datapath that lacks some.
const remedyDatapath = "boot a newer kernel, or set --datapath-type=netdev for the userspace datapath"

// errFeatures says which features a datapath lacks, by what dpif/show-dp-features printed; nil if it will do.
func errFeatures(printed string) error {
	var lacks []string
	for line := range strings.Lines(printed) {
		feature, has, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if has == "No" && slices.Contains(neededFeatures(), feature) {
			lacks = append(lacks, feature)
		}
	}
	if len(lacks) > 0 {
		return fmt.Errorf("the datapath cannot do %s", strings.Join(lacks, ", "))
	}
	return nil
}
