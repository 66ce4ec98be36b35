package source

import (
	"fmt"
	"net/netip"

	"github.com/twill-net/twill/flows"
)

// ServiceKinds are all Services and EndpointSlices. Version changes with every change of one.
type ServiceKinds struct {
	Version  uint64
	Services []*ServiceObject
	Slices   []*SliceObject
}

// Joiner puts Services and their EndpointSlices together. What did not change is not made anew, so that
// ten thousand Services cost one comparison of pointers each.
type Joiner struct {
	cidrs  []netip.Prefix
	before map[Key]*joined
}

type joined struct {
	service *ServiceObject
	slices  []*SliceObject
	ports   []*flows.ServicePort
}

// NewJoiner makes one; cidrs are the ranges of ClusterIPs, where the operator told them.
func NewJoiner(cidrs []netip.Prefix) *Joiner {
	return &Joiner{cidrs: cidrs, before: map[Key]*joined{}}
}

// Join returns what the objects say now.
func (j *Joiner) Join(k ServiceKinds) *flows.Services {
	slices := map[Key][]*SliceObject{}
	for _, s := range k.Slices {
		if s.Service != "" {
			key := Key{Namespace: s.Namespace, Name: s.Service}
			slices[key] = append(slices[key], s)
		}
	}
	now := make(map[Key]*joined, len(k.Services))
	var ports []*flows.ServicePort
	for _, s := range k.Services {
		key := Key{Namespace: s.Namespace, Name: s.Name}
		n := &joined{service: s, slices: slices[key]}
		if old := j.before[key]; old != nil && old.service == s && samePointers(old.slices, n.slices) {
			n.ports = old.ports
		} else {
			n.ports = portsOf(s, n.slices)
		}
		now[key] = n
		ports = append(ports, n.ports...)
	}
	j.before = now
	return flows.NewServices(ports, j.cidrs)
}

func samePointers(a, b []*SliceObject) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// portsOf are the ports of a Service that is served.
func portsOf(s *ServiceObject, slices []*SliceObject) (out []*flows.ServicePort) {
	if len(s.ClusterIPs) == 0 {
		return nil
	}
	for _, p := range s.Ports {
		name := p.Name
		if name == "" {
			name = fmt.Sprint(p.Port)
		}
		port := &flows.ServicePort{
			Owner: flows.ServiceOwner(s.Namespace, s.Name, name, p.Protocol), Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort,
			ClusterIPs: s.ClusterIPs, LoadBalancer: s.LoadBalancer, External: s.External, SourceRanges: s.SourceRanges,
			InternalLocal: s.InternalLocal, ExternalLocal: s.ExternalLocal, Affinity: s.Affinity,
		}
		for _, slice := range slices {
			for _, sp := range slice.Ports {
				if sp.Name != p.Name || sp.Protocol != p.Protocol {
					continue
				}
				for _, e := range slice.Endpoints {
					port.Endpoints = append(port.Endpoints, flows.Endpoint{
						Address: e.Address, Port: sp.Port, Node: e.Node, Ready: e.Ready, Serving: e.Serving, Terminating: e.Terminating,
						ForZones: e.ForZones, ForNodes: e.ForNodes,
					})
				}
			}
		}
		port.Endpoints = flows.SortEndpoints(port.Endpoints)
		out = append(out, port)
	}
	return out
}
