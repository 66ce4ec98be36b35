package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// noOffload turns off what a link leaves to hardware when it transmits, as `ethtool -K LINK tx off`
// does: checksums, and the segmentation that needs them. It returns the names of the features that it
// turned off, empty when none was on.
func noOffload(link string) ([]string, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("open an ethtool socket: %w", err)
	}
	defer tool.Close()
	features, err := tool.FeaturesWithState(link)
	if err != nil {
		return nil, fmt.Errorf("read the offload features of %s: %w", link, err)
	}
	off := map[string]bool{}
	var names []string
	for name, state := range features {
		if state.Active && state.Available && !state.NeverChanged && transmitOffload(name) {
			off[name] = false
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	slices.Sort(names)
	if err := tool.Change(link, off); err != nil {
		return nil, fmt.Errorf("turn off %s of %s: %w", strings.Join(names, ", "), link, err)
	}
	return names, nil
}

// transmitOffload tells by the kernel's names (net/ethtool/common.c) which features rewrite or cut
// packets after whoever reads the link has seen them. tx-generic-segmentation stays: it is done in
// software before the driver.
func transmitOffload(feature string) bool {
	switch feature {
	case "tx-sctp-segmentation", "tx-udp-segmentation":
		return true
	}
	return strings.HasPrefix(feature, "tx-checksum-") || strings.HasPrefix(feature, "tx-tcp")
}
