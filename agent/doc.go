// Package agent is the node daemon: it keeps one OVS bridge, the host's side of the pod network and the
// CNI plugin's requests in step with what Kubernetes says.
//
// # Parts
//
//	source     what Kubernetes says: the API server, or a directory of manifests
//	attach     what a CNI command does: address, veth, port row, flows, in that order
//	host       links, addresses, routes, nftables, sysctls: everything by netlink
//
//	loop       the flows: World now, compile what differs, one bundle (loop.go, world.go)
//	plumbing   the bridge in OVSDB, the gateway, nftables, MTU (plumbing.go)
//	daemonWatch  ovs-vswitchd died or came back (daemon.go)
//	peers      is every other node reachable through the tunnel (peers.go)
//	health     what readiness rests on (health.go); http.go and status.go answer questions
//
// # How it works
//
// Nothing here acts on an event. An event is a kick, a word that says why it may be worth to look; the
// part that is kicked looks at everything it is responsible for as it is now and repairs what differs.
// So a lost or doubled event does no harm, and it does not matter in which order things become known.
//
// # Gotchas
//
// The loop and the plumbing are one goroutine each, and neither waits for the other. Flows can be
// in step while the host is not, and the other way round; readiness tells both.
package agent
