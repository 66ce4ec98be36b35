// Package attach does what a CNI command asks for on a node: it gives a pod's interface its addresses, its
// veth pair, its port row and its flows, and takes them away again.
//
// # The port row is the lease
//
// OVSDB's Interface.external_ids hold all there is to know of an attachment (ids.go). An address is in use
// when a port row says so; there is no other database. What is only in memory is short-lived: addresses
// of an ADD under way, ports of a DEL under way, addresses that rest before they are used again.
//
// # Order
//
//	ADD  addresses → veth → port row → (flows, while ovs-vswitchd sets the port up) → answer
//	DEL  flows → port row → veth → addresses rest
//
// A kill between two steps of ADD leaves a veth without a row, or a row whose ADD never answered; both
// are removed by the DEL that the runtime sends, by GC, or by Adopt at the next start. A kill within DEL
// leaves the rest for the DEL that is repeated. Commands for different interfaces run side by side, so that
// the transactions and bundles of pods that arrive together can be shared.
package attach
