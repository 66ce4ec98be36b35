// Package host makes everything that Twill needs of the Linux host and of the network namespaces of
// pods true: the veth pair of a pod, the host's own end of the pod network, the nftables table, the
// choice of the tunnel address, and a probe of the overlay. It knows neither Kubernetes nor Open
// vSwitch: it is told what is wanted and compares that with what the kernel says.
//
// # Workflow
//
//	u, err := host.ChooseUnderlay(internalIPs, host.Want{})     // the tunnel address, and why
//	gw := host.Gateway{Link: "twill0", MTU: host.PodMTU(u), …}
//	repaired, err := gw.Ensure(ctx)                             // again and again; empty when all is right
//	repaired, err = host.NFTables{PodCIDRs: …}.Ensure(ctx)
//	err = host.AddVeth(ctx, host.Veth{Host: "…", NetNS: "/var/run/netns/…", IfName: "eth0", …})
//	go host.Watch(ctx, func(cause string) { … })                // says when Ensure is worth a call
//
// # Rules
//
//   - Every verb is idempotent: deleting what is missing is no error, making what is there adopts it.
//     The Ensure verbs say in sentences what they had to repair, and say nothing when all was right.
//   - Foreign things are left alone: other links, other nftables tables, routes of another protocol
//     number than RouteProtocol. Where a foreign thing stands in the way the error names it.
//   - Nothing depends on broadcast: gateways and next hops are permanent neighbour entries.
//
// # Gotchas
//
// The package works in the network namespace of the calling thread. A process that has several locks
// the goroutine to its thread (runtime.LockOSThread, or ns.Do of containernetworking/plugins); no verb
// opens a socket in a goroutine of its own.
//
// NFTables runs the nft binary, which must be in PATH, version 1.0.1 or later.
//
// To see what was made:
//
//	ip -d address show twill0; ip route show proto 119; ip -6 route show proto 119
//	ip neighbour show dev twill0; nft list table inet twill
package host
