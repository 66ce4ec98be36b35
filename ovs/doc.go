// Package ovs is all of Twill's contact with Open vSwitch.
//
// Three ways lead to it, each with a type of its own:
//
//   - DB is the configuration database, OVSDB (RFC 7047, ovs-vswitchd.conf.db(5)): bridges, ports and
//     their external_ids. Dial it once and keep it; it reconnects by itself.
//   - Switch is the OpenFlow side of one bridge: Apply one atomic bundle, read Flows or only Cookies
//     back. Bundles go by a connection that is kept open (KeepConnected; package openflow writes them),
//     whatever else, and what that cannot say, by ovs-ofctl(8).
//   - Daemon is ovs-vswitchd's control socket (ovs-appctl(8)), kept open: traces in half a millisecond,
//     and the news that the daemon died.
//
// The workflow of an agent:
//
//	db, err := ovs.Dial(ctx, ovs.Config{Endpoint: "unix:/run/openvswitch/db.sock", Log: log})
//	repaired, err := db.EnsureBridge(ctx, ovs.BridgeSpec{…})
//	port, err := db.AddPort(ctx, "br-twill", ovs.Port{Name: "veth1", ExternalIDs: …})
//	err = ovs.NewSwitch("br-twill", "", ovs.System()).Apply(ctx, bundle)
//	for range db.Changed() { … read db.Ports, compile, apply … }
//
// Verbs are idempotent: what is already there is adopted, what is already gone is no error.
//
// Gotchas:
//
//   - Changed is a kick, not an event: it says "look again", never what changed.
//   - While OVSDB is away, reads answer with the last state known, and Alive says why. Writes wait for
//     the connection to come back, as long as their context allows; those of ports, which may share
//     a transaction, 10 s at most.
//   - A committed transaction only means that the database knows. Whether ovs-vswitchd could make the
//     port shows later, as a positive ofport or as −1 with Interface.error: WaitPort tells.
//   - ovs-vswitchd may restart alone. OVSDB says nothing about it and the flow table is empty:
//     watch Daemon.Done, and read Cookies.
//   - An ovs-vswitchd that is down makes waiting verbs wait: give every context a deadline.
package ovs
