package inspect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twill-net/twill/flows"
)

// servicePrefix begins the name of a Service as FROM or TO: service/NAMESPACE/NAME, with :PORT behind it for one port.
const servicePrefix = "service/"

// servicePorts are the ports of a Service, or the one that is named, by owner.
func servicePorts(w *flows.World, name string) []*flows.ServicePort {
	if w.Services == nil {
		return nil
	}
	var out []*flows.ServicePort
	for _, p := range w.Services.All() {
		full, _, _ := strings.Cut(strings.TrimPrefix(string(p.Owner), servicePrefix), "/udp")
		full, _, _ = strings.Cut(full, "/sctp")
		service, _, _ := strings.Cut(full, ":")
		if want := strings.TrimPrefix(name, servicePrefix); want == full || want == service {
			out = append(out, p)
		}
	}
	return out
}

// aim finds the port of a Service that a question is for, and completes the question with its protocol and number.
func aim(w *flows.World, q *Question) ([]netip.Addr, error) {
	ports := servicePorts(w, q.To)
	switch {
	case w.Services == nil:
		return nil, bad("TO %s: the agent of node %s serves no Services (--service-proxy is off); ask for the address of an endpoint", q.To, w.Node.Name)
	case len(ports) == 0:
		return nil, notFound{fmt.Errorf("TO %s: node %s knows no such Service with an address of its own (use service/NAMESPACE/NAME; headless Services and ExternalName have none)", q.To, w.Node.Name)}
	}
	var fit []*flows.ServicePort
	var have []string
	for _, p := range ports {
		have = append(have, fmt.Sprintf("%s %d", p.Protocol, p.Port))
		if (q.Proto == "" || q.Proto == p.Protocol) && (q.Port == 0 || q.Port == p.Port) {
			fit = append(fit, p)
		}
	}
	switch {
	case q.Proto == "icmp" || len(fit) == 0 && q.Port != 0:
		// What becomes of it nevertheless is a good question.
		q.Proto = cmp.Or(q.Proto, ports[0].Protocol)
		return serviceAddresses(ports[0]), nil
	case len(fit) != 1:
		return nil, bad("TO %s has the ports %s: say which with --port and --proto", q.To, strings.Join(have, ", "))
	}
	q.Proto, q.Port = fit[0].Protocol, fit[0].Port
	return serviceAddresses(fit[0]), nil
}

// serviceAddresses are those at which a port is served, its own first.
func serviceAddresses(p *flows.ServicePort) []netip.Addr {
	return slices.Concat(p.ClusterIPs, p.LoadBalancer, p.External)
}

// atNodePort is the port of a Service that nodes serve at this port; nil if it is none.
func atNodePort(w *flows.World, proto string, port uint16) *flows.ServicePort {
	if w.Services == nil || port == 0 {
		return nil
	}
	for _, p := range w.Services.All() {
		if p.NodePort == port && p.Protocol == proto {
			return p
		}
	}
	return nil
}

// servedAt is the port of a Service that a packet is for; nil if it is for none.
func servedAt(w *flows.World, proto string, a netip.Addr, port uint16) *flows.ServicePort {
	if w.Services == nil {
		return nil
	}
	if a == flows.NodePortAddress(a.Is4()) {
		return atNodePort(w, proto, port)
	}
	for _, p := range w.Services.At(flows.Frontend{Protocol: proto, At: netip.AddrPortFrom(w.StandsFor(a), port)}) {
		return p
	}
	return nil
}

// serviceAt names the Service that has an address, whatever the port; empty if none has.
func serviceAt(w *flows.World, a netip.Addr) string {
	if w.Services == nil {
		return ""
	}
	if a = w.StandsFor(a); !w.Services.Serves(a) {
		return ""
	}
	if a == flows.NodePortAddress(a.Is4()) {
		return "node ports"
	}
	for _, p := range w.Services.All() {
		if slices.Contains(serviceAddresses(p), a) {
			return "Service " + serviceName(p.Owner)
		}
	}
	return ""
}

// serviceName is NAMESPACE/NAME of the owner of a Service's port.
func serviceName(o flows.Owner) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(string(o), servicePrefix), ":")
	return name
}

// Choice is one endpoint of a Service that a new connection may get.
type Choice struct {
	// Endpoint is ADDRESS:PORT, Where the pod or node that has it, as far as this node knows.
	Endpoint string `json:"endpoint"`
	Where    string `json:"where,omitempty"`
	// Share is its part of new connections, from 0 to 1.
	Share float64 `json:"share"`
	// Followed marks the one whose way is told.
	Followed bool `json:"followed,omitempty"`
}

// choices are the endpoints that a group may choose from.
func choices(w *flows.World, names *flows.Names, g *flows.Group, followed netip.AddrPort) []Choice {
	var out []Choice
	for _, c := range g.Choices() {
		out = append(out, Choice{Endpoint: c.Endpoint.String(), Where: whereIs(w, names, g.Owner, c.Endpoint), Share: c.Share, Followed: c.Endpoint == followed})
	}
	return out
}

// whereIs says who has an endpoint.
func whereIs(w *flows.World, names *flows.Names, service flows.Owner, e netip.AddrPort) string {
	if name, ok := strings.CutPrefix(names.Address(e.Addr().String()), e.Addr().String()+" ("); ok {
		return strings.TrimSuffix(name, ")")
	}
	if w.Services == nil || w.Services.Port(service) == nil {
		return ""
	}
	for _, x := range w.Services.Port(service).Endpoints {
		if x.Address == e.Addr() && x.Port == e.Port() && x.Node != "" {
			return "on node " + x.Node
		}
	}
	return ""
}

// position says which of several endpoints is followed: "endpoint 2 of 3, 33 % of new connections".
func position(list []Choice) string {
	for i, c := range list {
		if c.Followed && len(list) > 1 {
			return fmt.Sprintf("endpoint %d of %d, %.0f %% of new connections", i+1, len(list), 100*c.Share)
		}
	}
	return ""
}

// serviceSamples are addresses and ports at which Services, their endpoints and policies are met.
func serviceSamples(w *flows.World) (to []netip.Addr, ports []Question) {
	ask := func(proto string, port uint16) {
		q := Question{Proto: proto, Port: port, SourcePort: 40000}
		if port != 0 && !slices.Contains(ports, q) {
			ports = append(ports, q)
		}
	}
	if w.Services != nil {
		for _, p := range w.Services.All() {
			to = append(to, serviceAddresses(p)...)
			ask(p.Protocol, p.Port)
			if p.NodePort != 0 {
				to = append(to, flows.NodePortAddress(true), flows.NodePortAddress(false))
				ask(p.Protocol, p.NodePort)
			}
			for _, e := range p.Endpoints {
				ask(p.Protocol, e.Port)
			}
		}
	}
	if w.Policy == nil {
		return to, ports
	}
	for _, key := range w.Policy.Clauses.Keys() {
		if c, _ := w.Policy.Clauses.Get(key); c.Kind == flows.Port {
			ask(map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}[c.Protocol], c.Port)
		}
	}
	for _, key := range w.Policy.Peers.Keys() {
		if x, _ := w.Policy.Peers.Get(key); len(to) < maxSamples {
			to = append(to, x.Addresses...)
		}
	}
	return to, ports
}
