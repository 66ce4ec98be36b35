package cni

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Previous is the PrevResult of a request, decoded; empty if there is none.
func (r *Request) Previous() (*types100.Result, error) {
	previous := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if len(r.PrevResult) == 0 {
		return previous, nil
	}
	if err := json.Unmarshal(r.PrevResult, previous); err != nil {
		return nil, Errorf(ErrDecoding, "prevResult: %w", err)
	}
	return previous, nil
}

// merge appends to the prevResult of req, which other plugins of the chain made, what ADD made: the host
// end, the pod's end with its network namespace, its addresses (which point at it) and routes.
func (r *Result) merge(req *Request) (*types100.Result, error) {
	merged, err := req.Previous()
	if err != nil {
		return nil, err
	}
	merged.Interfaces = append(merged.Interfaces,
		&types100.Interface{Name: r.HostInterface, Mac: r.HostMAC, Mtu: r.MTU},
		&types100.Interface{Name: req.IfName, Mac: r.MAC, Mtu: r.MTU, Sandbox: req.NetNS})
	pod := len(merged.Interfaces) - 1
	for _, a := range r.Addresses {
		ip := &types100.IPConfig{Interface: types100.Int(pod), Address: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		for _, g := range r.Gateways {
			if g.Is4() == a.Is4() {
				ip.Gateway = g.AsSlice()
			}
		}
		merged.IPs = append(merged.IPs, ip)
	}
	for _, route := range r.Routes {
		merged.Routes = append(merged.Routes, &types.Route{Dst: ipNet(route.Destination), GW: route.Gateway.AsSlice()})
	}
	if !req.Config.DNS.IsEmpty() {
		merged.DNS = req.Config.DNS
	}
	return merged, nil
}

// Differs compares r, what the agent holds of an attachment, with the prevResult of a CHECK. It returns
// nil if prevResult lists all of it: both interfaces and their hardware addresses, and every address at
// the pod's interface. Plugins later in the chain may have added to it and may have changed routes. A
// changed hardware address is an error: the bridge accepts no other than its own.
func (r *Result) Differs(req *Request) error {
	previous, err := req.Previous()
	if err != nil {
		return err
	}
	differs := func(format string, args ...any) error {
		return Errorf(ErrDiffers, "prevResult "+format, args...).
			Advise("another plugin changed it, or the sandbox was attached anew: the runtime should replace the sandbox")
	}
	pod := -1
	host := false
	for i, found := range previous.Interfaces {
		switch {
		case found.Sandbox == "" && found.Name == r.HostInterface:
			host = true
		case found.Sandbox != "" && found.Name == req.IfName:
			pod = i
		}
	}
	if pod < 0 {
		return differs("has no interface %s with a sandbox", req.IfName)
	}
	if !host {
		return differs("has no host interface %s", r.HostInterface)
	}
	if mac := previous.Interfaces[pod].Mac; mac != "" && !strings.EqualFold(mac, r.MAC) {
		return differs("says that %s has the hardware address %s, but it was given %s", req.IfName, mac, r.MAC)
	}
	for _, a := range r.Addresses {
		if !lists(previous, pod, a) {
			return differs("does not list the address %s at interface %s", a, req.IfName)
		}
	}
	return nil
}

// lists says whether a result has an address at an interface. An address without an interface counts.
func lists(result *types100.Result, at int, a netip.Addr) bool {
	for _, ip := range result.IPs {
		got, ok := netip.AddrFromSlice(ip.Address.IP)
		if ok && got.Unmap() == a && (ip.Interface == nil || *ip.Interface == at) {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
