package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ServiceObject is what Twill reads of a Service, checked.
type ServiceObject struct {
	Namespace, Name, UID string
	// ClusterIPs are empty for a Service that is not to be served: headless, ExternalName, or by its labels (see
	// notForProxies).
	ClusterIPs, LoadBalancer, External []netip.Addr
	SourceRanges                       []netip.Prefix
	InternalLocal, ExternalLocal       bool
	// HealthCheckNodePort is where a load balancer asks whether this node has endpoints; 0 for none.
	HealthCheckNodePort uint16
	// Affinity is the time-out of sessionAffinity ClientIP in seconds, 0 for none.
	Affinity int
	Ports    []ServiceObjectPort
}

// ServiceObjectPort is one of its ports.
type ServiceObjectPort struct {
	Name, Protocol string
	Port, NodePort uint16
}

// SliceObject is what Twill reads of an EndpointSlice, checked.
type SliceObject struct {
	Namespace, Name, Service string
	Ports                    []SlicePort
	Endpoints                []SliceEndpoint
}

// SlicePort is one port of all endpoints of a slice.
type SlicePort struct {
	Name, Protocol string
	Port           uint16
}

// SliceEndpoint is one endpoint of a slice.
type SliceEndpoint struct {
	Address                     netip.Addr
	Node                        string
	Ready, Serving, Terminating bool
	ForZones, ForNodes          []string
}

// labelProxyName is the label by which a Service chooses another proxy (KEP-2447).
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// notForProxies are the labels by which a Service says that it is not for this proxy, whatever their value, as kube-proxy
// reads them: another serves it, or it is to be taken as headless though it has a ClusterIP.
func notForProxies() []string { return []string{labelProxyName, corev1.IsHeadlessService} }

func keepMeta(m metav1.ObjectMeta, labels ...string) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
	for _, l := range labels {
		if v, ok := m.Labels[l]; ok {
			if kept.Labels == nil {
				kept.Labels = map[string]string{}
			}
			kept.Labels[l] = v
		}
	}
	return kept
}

func stripService(o object) object {
	s := o.(*corev1.Service)
	spec := s.Spec
	spec.Selector = nil
	return &corev1.Service{ObjectMeta: keepMeta(s.ObjectMeta, notForProxies()...), Spec: spec,
		Status: corev1.ServiceStatus{LoadBalancer: s.Status.LoadBalancer}}
}

func stripSlice(o object) object {
	s := o.(*discoveryv1.EndpointSlice)
	kept := &discoveryv1.EndpointSlice{ObjectMeta: keepMeta(s.ObjectMeta, discoveryv1.LabelServiceName), AddressType: s.AddressType, Ports: s.Ports}
	for _, e := range s.Endpoints {
		kept.Endpoints = append(kept.Endpoints, discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, NodeName: e.NodeName, Hints: e.Hints})
	}
	return kept
}

// faults collects what is wrong with an object.
type faults []Problem

func (f *faults) add(format string, args ...any) {
	*f = append(*f, Problem{Reason: fmt.Sprintf(format, args...)})
}

// convertService checks a Service. What cannot be used is left out and named; the rest is used.
func convertService(o object) (any, []Problem) {
	s := o.(*corev1.Service)
	out := &ServiceObject{Namespace: s.Namespace, Name: s.Name, UID: string(s.UID)}
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return out, nil
	}
	for _, l := range notForProxies() {
		if _, there := s.Labels[l]; there {
			return out, nil
		}
	}
	var f faults
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 && s.Spec.ClusterIP != "" {
		ips = []string{s.Spec.ClusterIP}
	}
	out.ClusterIPs = f.addresses("spec.clusterIPs", ips, "delete the Service and create it anew")
	out.External = f.addresses("spec.externalIPs", s.Spec.ExternalIPs, "correct it in the Service")
	var ingress []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			ingress = append(ingress, i.IP)
		}
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		out.LoadBalancer = f.addresses("status.loadBalancer.ingress", ingress, "see why its controller reports that")
		for _, text := range s.Spec.LoadBalancerSourceRanges {
			p, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil || p.Addr().Is4In6() {
				f.add("spec.loadBalancerSourceRanges %q is no range such as 203.0.113.0/24; nobody is let in by it. Correct it in the Service.", text)
				p = netip.MustParsePrefix("255.255.255.255/32") // nobody has it: an unreadable list must not let everybody in
			}
			out.SourceRanges = append(out.SourceRanges, p.Masked())
		}
		out.HealthCheckNodePort = uint16(max(0, min(s.Spec.HealthCheckNodePort, 65535)))
	}
	out.ExternalLocal = s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	out.InternalLocal = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.Affinity = int(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			out.Affinity = max(1, int(*c.ClientIP.TimeoutSeconds))
		}
	}
	taken := map[string]bool{}
	for i, p := range s.Spec.Ports {
		port := ServiceObjectPort{Name: p.Name, Protocol: protocolOf(&p.Protocol)}
		number := fmt.Sprintf("%d/%s", p.Port, port.Protocol)
		switch {
		case port.Protocol == "":
			f.add("spec.ports[%d].protocol %q is none of TCP, UDP and SCTP; the port is not served. Correct it in the Service.", i, p.Protocol)
		case p.Name != "" && len(validation.IsDNS1123Label(p.Name)) > 0:
			f.add("spec.ports[%d].name %q is no name of a port; it is not served. Correct it in the Service.", i, p.Name)
		case p.Port < 1 || p.Port > 65535:
			f.add("spec.ports[%d].port %d is not between 1 and 65535; the port is not served. Correct it in the Service.", i, p.Port)
		case taken[number] || taken["name "+port.Name]:
			f.add("spec.ports[%d] (%s %s) has the number or the name of an earlier port; it is not served. Correct it in the Service.", i, port.Name, number)
		default:
			taken[number], taken["name "+port.Name] = true, true
			port.Port = uint16(p.Port)
			if p.NodePort > 0 && p.NodePort < 65536 {
				port.NodePort = uint16(p.NodePort)
			}
			out.Ports = append(out.Ports, port)
		}
	}
	return out, f
}

// protocolOf is the protocol in our words, "" for one that is not known. Kubernetes' default is TCP.
func protocolOf(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return "tcp"
	}
	switch *p {
	case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
		return strings.ToLower(string(*p))
	}
	return ""
}

func (f *faults) addresses(field string, list []string, remedy string) (out []netip.Addr) {
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err == nil {
			a = a.Unmap()
		}
		if err != nil || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Zone() != "" {
			f.add("%s %q is no address that a Service can have; it is not served: %s.", field, text, remedy)
			continue
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// convertSlice checks an EndpointSlice.
func convertSlice(o object) (any, []Problem) {
	s := o.(*discoveryv1.EndpointSlice)
	out := &SliceObject{Namespace: s.Namespace, Name: s.Name, Service: s.Labels[discoveryv1.LabelServiceName]}
	if s.AddressType == discoveryv1.AddressTypeFQDN || out.Service == "" {
		return out, nil
	}
	var f faults
	for i, p := range s.Ports {
		port := SlicePort{Protocol: protocolOf(p.Protocol)}
		if p.Name != nil {
			port.Name = *p.Name
		}
		switch {
		case port.Protocol == "":
			f.add("ports[%d].protocol %q is none of TCP, UDP and SCTP; it is not used. Correct what made the slice.", i, *p.Protocol)
		case p.Port == nil: // "all ports": of no use to a proxy
		case *p.Port < 1 || *p.Port > 65535:
			f.add("ports[%d].port %d is not between 1 and 65535; it is not used. Correct what made the slice.", i, *p.Port)
		default:
			port.Port = uint16(*p.Port)
			out.Ports = append(out.Ports, port)
		}
	}
	for i, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			f.add("endpoints[%d] has no address; it is not used. Correct what made the slice.", i)
			continue
		}
		// Of several addresses only the first is meant (discovery/v1).
		list := f.addresses(fmt.Sprintf("endpoints[%d].addresses", i), e.Addresses[:1], "correct what made the slice")
		if len(list) == 0 {
			continue
		}
		a := list[0]
		if a.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
			f.add("endpoints[%d] has the address %s, but the slice is of type %s; it is not used. Correct what made the slice.", i, a, s.AddressType)
			continue
		}
		out.Endpoints = append(out.Endpoints, endpointOf(a, e))
	}
	return out, f
}

func endpointOf(a netip.Addr, e discoveryv1.Endpoint) SliceEndpoint {
	// nil means true for ready and serving, false for terminating (discovery/v1, EndpointConditions).
	out := SliceEndpoint{Address: a, Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
	out.Serving = e.Conditions.Serving == nil && out.Ready || e.Conditions.Serving != nil && *e.Conditions.Serving
	out.Terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
	if e.NodeName != nil {
		out.Node = *e.NodeName
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ForZones = append(out.ForZones, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			out.ForNodes = append(out.ForNodes, n.Name)
		}
	}
	return out
}
