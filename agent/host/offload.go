package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// offloads names what a link leaves to hardware when it transmits and could do without: checksums, and
// the segmentation that needs them. It is what `ethtool -K LINK tx off` turns off.
func offloads(link string) (names []string, err error) {
	err = withEthtool(func(tool *ethtool.Ethtool) (err error) { names, err = activeOffloads(tool, link); return })
	return names, err
}

// noOffload turns the offloads of a link off and returns their names, none when all were off.
func noOffload(link string) (names []string, err error) {
	err = withEthtool(func(tool *ethtool.Ethtool) (err error) {
		if names, err = activeOffloads(tool, link); err != nil || len(names) == 0 {
			return err
		}
		off := map[string]bool{}
		for _, name := range names {
			off[name] = false
		}
		if err := tool.Change(link, off); err != nil {
			return fmt.Errorf("turn off %s of %s: %w", strings.Join(names, ", "), link, err)
		}
		return nil
	})
	return names, err
}

func withEthtool(f func(*ethtool.Ethtool) error) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open an ethtool socket: %w", err)
	}
	defer tool.Close()
	return f(tool)
}

func activeOffloads(tool *ethtool.Ethtool, link string) (names []string, err error) {
	features, err := tool.FeaturesWithState(link)
	if err != nil {
		return nil, fmt.Errorf("read the offload features of %s: %w", link, err)
	}
	for name, state := range features {
		if state.Active && state.Available && !state.NeverChanged && transmitOffload(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
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
