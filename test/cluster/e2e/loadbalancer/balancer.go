package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// firstAddress is the first that is given to a Service, by family (RFC 5737, RFC 3849).
func firstAddress(f v1.IPFamily) netip.Addr {
	if f == v1.IPv6Protocol {
		return netip.MustParseAddr("2001:db8:113::1")
	}
	return netip.MustParseAddr("203.0.113.1")
}

// balancer implements cloudprovider.LoadBalancer. Which addresses are given is what it remembers; a test cluster lives no
// longer than it.
type balancer struct {
	client *http.Client
	// sources are the addresses that routes prefer for what begins here, by whether it is IPv4.
	sources map[bool]netip.Addr
	mu      sync.Mutex
	given   map[types.UID]*given
}

// given are the addresses of one Service and the nodes that they may lead to.
type given struct {
	addresses []netip.Addr
	nodes     []*v1.Node
	// health is the Service's healthCheckNodePort, 0 without one.
	health int32
	// sticky is true when a client stays with its endpoint, and so with its node: there is one client here.
	sticky bool
	// routes is what was routed last, by address.
	routes map[netip.Addr]string
}

func newBalancer(sources []string) (*balancer, error) {
	b := &balancer{client: &http.Client{Timeout: time.Second}, sources: map[bool]netip.Addr{}, given: map[types.UID]*given{}}
	for _, text := range sources {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		b.sources[a.Is4()] = a
	}
	return b, nil
}

func (b *balancer) GetLoadBalancerName(_ context.Context, _ string, s *v1.Service) string {
	return s.Namespace + "/" + s.Name
}

func (b *balancer) GetLoadBalancer(_ context.Context, _ string, s *v1.Service) (*v1.LoadBalancerStatus, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.given[s.UID]
	if !ok {
		return nil, false, nil
	}
	return g.status(), true, nil
}

func (b *balancer) EnsureLoadBalancer(ctx context.Context, _ string, s *v1.Service, nodes []*v1.Node) (*v1.LoadBalancerStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.given[s.UID]
	if !ok {
		g = &given{routes: map[netip.Addr]string{}}
		for _, f := range s.Spec.IPFamilies {
			g.addresses = append(g.addresses, b.free(f))
		}
		b.given[s.UID] = g
	}
	g.nodes, g.health, g.sticky = nodes, s.Spec.HealthCheckNodePort, s.Spec.SessionAffinity == v1.ServiceAffinityClientIP
	return g.status(), b.route(ctx, g)
}

func (b *balancer) UpdateLoadBalancer(ctx context.Context, _ string, s *v1.Service, nodes []*v1.Node) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.given[s.UID]
	if !ok {
		return fmt.Errorf("Service %s/%s has no load balancer", s.Namespace, s.Name)
	}
	g.nodes = nodes
	return b.route(ctx, g)
}

func (b *balancer) EnsureLoadBalancerDeleted(ctx context.Context, _ string, s *v1.Service) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.given[s.UID]
	if !ok {
		return nil
	}
	for a := range g.routes {
		if err := g.unroute(ctx, a); err != nil {
			return err
		}
	}
	delete(b.given, s.UID)
	return nil
}

// free is the lowest address of a family that no Service has.
func (b *balancer) free(f v1.IPFamily) netip.Addr {
	a := firstAddress(f)
	taken := map[netip.Addr]bool{}
	for _, g := range b.given {
		for _, x := range g.addresses {
			taken[x] = true
		}
	}
	for taken[a] {
		a = a.Next()
	}
	return a
}

func (g *given) status() *v1.LoadBalancerStatus {
	mode := v1.LoadBalancerIPModeVIP
	status := &v1.LoadBalancerStatus{}
	for _, a := range g.addresses {
		status.Ingress = append(status.Ingress, v1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	return status
}

// watchHealth asks the nodes every second whether they serve the Services that have a healthCheckNodePort.
func (b *balancer) watchHealth(ctx context.Context) {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		for uid, g := range b.given {
			if g.health == 0 {
				continue
			}
			if err := b.route(ctx, g); err != nil {
				log.Printf("%s: %v", uid, err)
			}
		}
		b.mu.Unlock()
	}
}

// route leads the addresses of a Service to all nodes that serve it, or to none.
func (b *balancer) route(ctx context.Context, g *given) error {
	for _, a := range g.addresses {
		route := []string{"unreachable", a.String()}
		var hops []string
		for _, n := range slices.SortedFunc(slices.Values(g.nodes), func(x, y *v1.Node) int { return strings.Compare(x.Name, y.Name) }) {
			if at := addressOf(n, a.Is4()); at != "" && b.healthy(ctx, at, g.health) {
				hops = append(hops, "nexthop", "via", at)
				if g.sticky {
					break
				}
			}
		}
		if len(hops) > 0 {
			route = append([]string{a.String(), "src", b.sources[a.Is4()].String()}, hops...)
		}
		text := strings.Join(route, " ")
		if g.routes[a] == text {
			continue
		}
		if _, routed := g.routes[a]; routed { // one of another kind is not replaced
			if err := g.unroute(ctx, a); err != nil {
				return err
			}
		}
		if err := ipRoute(ctx, "add", route...); err != nil {
			return err
		}
		g.routes[a] = text
		log.Printf("route %s", text)
	}
	return nil
}

func (g *given) unroute(ctx context.Context, a netip.Addr) error {
	if err := ipRoute(ctx, "del", a.String()); err != nil {
		return err
	}
	delete(g.routes, a)
	return nil
}

func (b *balancer) healthy(ctx context.Context, node string, port int32) bool {
	if port == 0 {
		return true
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(node, strconv.Itoa(int(port)))+"/healthz", nil)
	if err != nil {
		return false
	}
	answer, err := b.client.Do(r)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// addressOf is the node's address of a family, empty without one.
func addressOf(n *v1.Node, v4 bool) string {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == v1.NodeInternalIP && ip.Is4() == v4 {
			return a.Address
		}
	}
	return ""
}

func ipRoute(ctx context.Context, verb string, route ...string) error {
	argv := append([]string{"route", verb}, route...)
	if strings.Contains(strings.Join(route, " "), ":") {
		argv = append([]string{"-6"}, argv...)
	}
	if out, err := exec.CommandContext(ctx, "ip", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
