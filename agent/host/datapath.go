package host

import "github.com/vishvananda/netlink"

// ovsDatapathFamily is the generic netlink family that the kernel's openvswitch module registers
// (linux/openvswitch.h).
const ovsDatapathFamily = "ovs_datapath"

// KernelDatapath says whether this kernel has Open vSwitch's datapath loaded. OVS itself lists the type
// "system" also where the kernel lacks it.
func KernelDatapath() bool {
	_, err := netlink.GenlFamilyGet(ovsDatapathFamily)
	return err == nil
}
