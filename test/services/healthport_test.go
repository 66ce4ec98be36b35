package services

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestALoadBalancerOutsideHearsWhichNodesHaveEndpoints: with externalTrafficPolicy Local a load balancer asks each node at the
// healthCheckNodePort and sends only where the answer is 200 (Kubernetes' documentation, "Preserving the client source IP").
func TestALoadBalancerOutsideHearsWhichNodesHaveEndpoints(t *testing.T) {
	l := labtest.Up(t, lab.Options{Nodes: 2})
	pods := addPods(t, l, "near@node-1", "far@node-2")
	const port = 31999
	s := service{name: "web", ips: []string{"198.19.0.10", "2001:db8:1919::a"}, port: 80, target: 8080, endpoints: []lab.Pod{pods["near"]},
		spec: fmt.Sprintf("  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: %d\n", port)}
	hears := func(want string) {
		t.Helper()
		for _, family := range []string{"IPv4", "IPv6"} {
			labtest.Eventually(t, 5*patience, family+": "+want, func() error {
				got := ""
				for _, name := range []string{"node-1", "node-2"} {
					said, err := askHealth(labtest.OutsideNS(l), netip.AddrPortFrom(labtest.Of(family, labtest.Node(t, l, name).Addresses()), port))
					if err != nil {
						said = "refused"
						if !refused(err) {
							return err
						}
					}
					got += name + ": " + said + "; "
				}
				if got != want {
					return fmt.Errorf("it hears %s", got)
				}
				return nil
			})
		}
	}
	labtest.Apply(t, l, s.String())
	hears("node-1: 200 default/web 1 true; node-2: 503 default/web 0 true; ")
	s.endpoints = []lab.Pod{pods["far"]}
	labtest.Apply(t, l, s.String())
	hears("node-1: 503 default/web 0 true; node-2: 200 default/web 1 true; ")
	objects, err := lab.ParseManifests([]byte(s.String()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Delete(objects); err != nil {
		t.Fatal(err)
	}
	hears("node-1: refused; node-2: refused; ")
}

// askHealth asks as a load balancer does, and returns status, Service, endpoints and health of the proxy.
func askHealth(ns string, at netip.AddrPort) (string, error) {
	c, err := dial(ns, "tcp", at, 0)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", at); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	var v struct {
		Service             struct{ Namespace, Name string }
		LocalEndpoints      int
		ServiceProxyHealthy bool
	}
	err = json.NewDecoder(r.Body).Decode(&v)
	return fmt.Sprintf("%d %s/%s %d %v", r.StatusCode, v.Service.Namespace, v.Service.Name, v.LocalEndpoints, v.ServiceProxyHealthy), err
}
