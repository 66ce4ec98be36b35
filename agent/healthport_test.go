package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// freePort is one that nobody listens at.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

type heardHealth struct {
	status  int
	weight  string
	text    string
	healthy bool
	local   int
}

func askHealth(port uint16) (h heardHealth, err error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return h, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return h, err
	}
	var v struct {
		Service             struct{ Namespace, Name string }
		LocalEndpoints      int
		ServiceProxyHealthy bool
	}
	err = json.Unmarshal(body, &v)
	return heardHealth{r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight"), v.Service.Namespace + "/" + v.Service.Name,
		v.ServiceProxyHealthy, v.LocalEndpoints}, err
}

func TestALoadBalancerHearsWhetherTheNodeHasEndpoints(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	var failures []string
	healthy := true
	h := newHealthPorts(&healthPorts{log: log, healthy: func() bool { return healthy }, failed: func(p healthPort, reason string) {
		failures = append(failures, p.Namespace+"/"+p.Name+": "+reason)
	}})
	ctx := context.Background()
	t.Cleanup(func() { h.ensure(ctx, nil) })
	port := freePort(t)
	web := healthPort{"shop", "web", port, 2}
	want := func(what string, want heardHealth) {
		t.Helper()
		if got, err := askHealth(port); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
		}
	}
	h.ensure(ctx, []healthPort{web})
	want("two endpoints", heardHealth{200, "2", "shop/web", true, 2})
	web.Local = 0
	h.ensure(ctx, []healthPort{web})
	want("no endpoint", heardHealth{503, "0", "shop/web", true, 0})
	web.Local, healthy = 1, false
	h.ensure(ctx, []healthPort{web})
	want("flows not in step", heardHealth{503, "1", "shop/web", false, 1})
	if len(failures) > 0 {
		t.Errorf("failures: %q", failures)
	}

	// The port of two Services: one keeps it, the other is named, once.
	for range 2 {
		h.ensure(ctx, []healthPort{web, {"shop", "www", port, 3}})
	}
	if len(failures) != 1 || !strings.Contains(failures[0], "shop/www") || !strings.Contains(failures[0], "Service shop/web") {
		t.Errorf("one port twice: %q", failures)
	}
	h.ensure(ctx, nil)
	if _, err := askHealth(port); err == nil {
		t.Error("a Service that is gone is still answered for")
	}
}

func TestAHealthCheckNodePortThatIsTakenIsNamedAndTriedAgain(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	var failures []string
	h := newHealthPorts(&healthPorts{log: log, healthy: func() bool { return true }, failed: func(_ healthPort, reason string) { failures = append(failures, reason) }})
	ctx := context.Background()
	t.Cleanup(func() { h.ensure(ctx, nil) })
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	web := healthPort{"shop", "web", port, 1}
	h.ensure(ctx, []healthPort{web})
	web.Local = 2
	h.ensure(ctx, []healthPort{web})
	if len(failures) != 1 || !strings.Contains(failures[0], fmt.Sprint(port)) {
		t.Errorf("a port that is taken: %q, want one sentence that names it", failures)
	}
	l.Close()
	h.ensure(ctx, []healthPort{web})
	if got, err := askHealth(port); err != nil || got.status != 200 {
		t.Errorf("after it became free: %+v, %v", got, err)
	}
}

func TestOnlyReadyEndpointsOfTheNodeCountForItsHealth(t *testing.T) {
	addr := netip.MustParseAddr
	object := &source.ServiceObject{Namespace: "shop", Name: "web", ClusterIPs: []netip.Addr{addr("198.19.0.10")}, ExternalLocal: true, HealthCheckNodePort: 31000,
		Ports: []source.ServiceObjectPort{{Name: "http", Protocol: "tcp", Port: 80}, {Name: "https", Protocol: "tcp", Port: 443}}}
	endpoints := []flows.Endpoint{
		{Address: addr("198.18.1.2"), Port: 8080, Node: "alpha", Ready: true},
		{Address: addr("198.18.1.3"), Port: 8080, Node: "alpha", Serving: true, Terminating: true},
		{Address: addr("198.18.2.2"), Port: 8080, Node: "beta", Ready: true},
		{Address: addr("2001:db8:1::2"), Port: 8080, Node: "alpha", Ready: true},
	}
	var ports []*flows.ServicePort
	for _, p := range object.Ports { // the same pod behind both ports is one endpoint
		ports = append(ports, &flows.ServicePort{Owner: flows.ServiceOwner("shop", "web", p.Name, p.Protocol), Protocol: "tcp", Port: p.Port,
			ClusterIPs: object.ClusterIPs, Endpoints: endpoints})
	}
	got := healthPortsOf([]*source.ServiceObject{object}, flows.NewServices(ports, nil), "alpha")
	if len(got) != 1 || got[0] != (healthPort{"shop", "web", 31000, 1}) {
		t.Errorf("got %+v, want one endpoint of shop/web at 31000", got)
	}
}
