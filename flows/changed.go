package flows

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
)

// Changed lists the owners whose flows may differ between two Worlds, sorted. A nil old World means
// all of now. So that whatever woke the agent up, what has to be compiled again follows from the Worlds
// alone.
func Changed(old, now *World) []Owner {
	if old == nil || !old.sameBase(now) {
		all := now.Owners()
		if old != nil {
			all = append(all, old.Owners()...)
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	var out []Owner
	nodes := map[netip.Addr]bool{}
	for name, n := range now.Peers {
		if was, ok := old.Peers[name]; !ok || !was.Equal(n) {
			out = append(out, NodeOwner(name))
			addTo(nodes, n.Addresses, was.Addresses)
		}
	}
	for name, was := range old.Peers {
		if _, ok := now.Peers[name]; !ok {
			out = append(out, NodeOwner(name))
			addTo(nodes, was.Addresses)
		}
	}
	out = append(out, changedServices(old, now, nodes)...)
	for o, list := range now.Pods {
		if !slices.EqualFunc(old.Pods[o], list, Attachment.Equal) ||
			slices.ContainsFunc(list, func(a Attachment) bool { return !old.isolation(a).Equal(now.isolation(a)) }) {
			out = append(out, o)
		}
	}
	for o := range old.Pods {
		if _, ok := now.Pods[o]; !ok {
			out = append(out, o)
		}
	}
	out = append(out, changedPolicy(old.Policy, now.Policy)...)
	slices.Sort(out)
	return slices.Compact(out)
}

func addTo(set map[netip.Addr]bool, lists ...[]netip.Addr) {
	for _, list := range lists {
		for _, a := range list {
			set[a] = true
		}
	}
}

// changedServices lists the owners of Services whose flows may differ, given the addresses of nodes that came
// or went.
func changedServices(before, after *World, nodes map[netip.Addr]bool) (out []Owner) {
	old, now := before.Services, after.Services
	if now == nil {
		return nil // so was old: sameBase
	}
	if before.Round != after.Round {
		out = append(out, AffinityOwner)
	}
	for a := range nodes {
		if now.Serves(a) {
			out = append(out, AddressOwner(a))
		}
	}
	for a := range maybeTranslated(before, after) {
		if before.translates(a) != after.translates(a) {
			out = append(out, endpointOwner(a))
		}
	}
	Differences(old.Ports, now.Ports, (*ServicePort).Equal, func(o string) { out = append(out, Owner(o)) })
	Differences(old.addresses, now.addresses, sameAddress, func(a string) { out = append(out, servedAddressOwner(a)) })
	return append(out, changedOwn(before, after)...)
}

// maybeTranslated holds all addresses whose answers are translated in one of two Worlds only.
func maybeTranslated(before, after *World) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	maps.Copy(out, before.Lingering)
	maps.Copy(out, after.Lingering)
	old, now := before.Services.endpoints, after.Services.endpoints
	Differences(old, now, sameAddress, func(key string) {
		a, ok := now.Get(key)
		if !ok {
			a, _ = old.Get(key)
		}
		out[a] = true
	})
	return out
}

// sameBase is true when nothing differs that flows of all owners depend on.
func (w *World) sameBase(o *World) bool {
	return w.Node.Equal(o.Node) && w.Tunnel == o.Tunnel && w.MTU == o.MTU && w.HostAnswersND == o.HostAnswersND &&
		slices.Equal(w.ClusterCIDRs, o.ClusterCIDRs) && (w.Services == nil) == (o.Services == nil) &&
		(w.Services == nil || slices.Equal(w.Services.CIDRs, o.Services.CIDRs))
}

// Equal is true when both are the same node with the same ranges and addresses.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.UID == o.UID && n.Zone == o.Zone && n.Created.Equal(o.Created) &&
		slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Addresses, o.Addresses)
}

// Equal is true when both are the same attachment on the same port.
func (a Attachment) Equal(o Attachment) bool {
	return a.Port == o.Port && a.OFPort == o.OFPort && a.Namespace == o.Namespace && a.Pod == o.Pod &&
		a.UID == o.UID && a.Sandbox == o.Sandbox && a.IfName == o.IfName && a.NetNS == o.NetNS &&
		a.MTU == o.MTU && bytes.Equal(a.MAC, o.MAC) && slices.Equal(a.Addresses, o.Addresses)
}
