// Package openflow writes flows and groups as the messages of OpenFlow 1.5 that a bundle is made of. It takes the lines
// that `ovs-ofctl bundle` takes (ovs-ofctl(8), "Bundles"), and makes of each the very bytes that ovs-ofctl makes: a
// process costs 20 ms and more, the bytes cost microseconds.
//
// It knows the words that Twill's flows are made of, and no others. What it does not know is an error that wraps
// ErrUnknown, and a matter for ovs-ofctl. Nothing here does I/O.
//
// Numbers and layouts are those of the OpenFlow Switch Specification 1.5.1 (ONF TS-025) and, for the extensions of Open
// vSwitch, of ovs-fields(7) and ovs-actions(7).
package openflow
