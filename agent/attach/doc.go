// Package attach does what a CNI command asks for on a node: it gives a pod's interface its addresses, its
// veth pair, its port row and its flows, and takes them away again.
//
// # The port row is the lease
//
// OVSDB's Interface.external_ids hold all there is to know of an attachment (ids.go). An address is in use
// when a port row says so; there is no other database. What is only in memory (leases.go) bridges the
// moments in which a row cannot say it: an ADD whose row is not there yet, a DEL whose row is gone while
// the veth is not, addresses that rest before they are used again, and a row that somebody else deleted
// under a running pod, whose address must not go to another one. Such a row is put back (Repair).
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
//
// # Gotchas
//
// Interfaces other than eth0 get addresses and flows, but no routes: whoever asks for them routes.
//
// A DEL that failed half-way has taken the flows away for good: it is meant to be repeated, and until then
// the addresses stay in use. A new podCIDR leaves running pods as they are, with the gateway that they
// were given; only a repeated ADD moves them. After a restart of the agent nothing rests, and a host end
// whose row was deleted meanwhile is removed: CHECK then says that the pod has to be made anew.
package attach
