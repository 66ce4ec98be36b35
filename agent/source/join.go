package source

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/twill-net/twill/flows"
)

// ServiceKinds are all Services and EndpointSlices, by "namespace/name". Two that are equal hold the same objects.
type ServiceKinds struct {
	Services *flows.Shards[*ServiceObject]
	Slices   *flows.Shards[*SliceObject]
}

// Joiner puts Services and their EndpointSlices together. It compares all objects with those of the time before, at a
// cost that follows how many differ, and makes anew only the Services that these are about. What comes out
// depends on the objects alone: a new Joiner makes the same of them.
type Joiner struct {
	index *flows.ServiceIndex
	last  ServiceKinds
	// slices are the EndpointSlices of each Service, there or not, by their own key.
	slices map[string]map[string]*SliceObject
	// checked are the Services at whose healthCheckNodePort somebody may ask, by their key.
	checked map[string]*ServiceObject
}

// NewJoiner makes one; cidrs are the ranges of ClusterIPs, where the operator told them.
func NewJoiner(cidrs []netip.Prefix) *Joiner {
	return &Joiner{index: flows.NewServiceIndex(cidrs), slices: map[string]map[string]*SliceObject{}, checked: map[string]*ServiceObject{}}
}

// Join returns what the objects say now; the same pointer as before if that is the same.
func (j *Joiner) Join(k ServiceKinds) *flows.Services {
	changed := map[string]bool{}
	flows.Differences(j.last.Services, k.Services, samePointer, func(key string) { changed[key] = true })
	flows.Differences(j.last.Slices, k.Slices, samePointer, func(key string) {
		if old, ok := j.last.Slices.Get(key); ok && old.Service != "" {
			service := old.serviceKey()
			delete(j.slices[service], key)
			if len(j.slices[service]) == 0 {
				delete(j.slices, service)
			}
			changed[service] = true
		}
		if now, ok := k.Slices.Get(key); ok && now.Service != "" {
			service := now.serviceKey()
			if j.slices[service] == nil {
				j.slices[service] = map[string]*SliceObject{}
			}
			j.slices[service][key] = now
			changed[service] = true
		}
	})
	j.last = k
	for key := range changed {
		s, ok := k.Services.Get(key)
		if !ok {
			delete(j.checked, key)
			j.index.Set(key, nil)
			continue
		}
		if j.checked[key] = s; s.HealthCheckNodePort == 0 || !s.ExternalLocal || len(s.ClusterIPs) == 0 {
			delete(j.checked, key)
		}
		of := j.slices[key]
		list := make([]*SliceObject, 0, len(of))
		for _, name := range slices.Sorted(maps.Keys(of)) {
			list = append(list, of[name])
		}
		j.index.Set(key, portsOf(s, list))
	}
	return j.index.Services()
}

// HealthChecked are the Services of the last Join with externalTrafficPolicy Local and a healthCheckNodePort, sorted.
func (j *Joiner) HealthChecked() []*ServiceObject {
	return slices.SortedFunc(maps.Values(j.checked), func(a, b *ServiceObject) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func (s *SliceObject) serviceKey() string { return s.Namespace + "/" + s.Service }

func samePointer[T any](a, b *T) bool { return a == b }

// portsOf are the ports of a Service that is served.
func portsOf(s *ServiceObject, list []*SliceObject) (out []*flows.ServicePort) {
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
		for _, slice := range list {
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
