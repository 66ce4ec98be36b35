package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// healthPort is what a load balancer is told about one Service with externalTrafficPolicy Local, at its
// healthCheckNodePort: whether this node has endpoints that are ready.
type healthPort struct {
	Namespace, Name string
	Port            uint16
	// Local is how many endpoints of this node are ready, of the family that has more of them.
	Local int
}

// healthPorts answers at the healthCheckNodePorts, with the words of kube-proxy. It is one goroutine; a port that cannot be
// opened is tried again at the next look.
type healthPorts struct {
	want    func() []healthPort
	healthy func() bool // whether the flows are in step
	failed  func(p healthPort, reason string)
	log     logrus.FieldLogger

	kicks chan struct{}
	mu    sync.Mutex
	now   map[uint16]healthPort // what is answered, by port
	open  map[uint16]*http.Server
	said  map[healthPort]string // failures that were told
}

// healthPortInterval is how often a port that could not be opened is tried again.
const healthPortInterval = 10 * time.Second

func newHealthPorts(h *healthPorts) *healthPorts {
	h.kicks = make(chan struct{}, 1)
	h.now, h.open, h.said = map[uint16]healthPort{}, map[uint16]*http.Server{}, map[healthPort]string{}
	return h
}

// kick asks for a look. It never blocks.
func (h *healthPorts) kick() {
	select {
	case h.kicks <- struct{}{}:
	default:
	}
}

func (h *healthPorts) run(ctx context.Context) {
	tick := time.NewTicker(healthPortInterval)
	defer tick.Stop()
	defer h.ensure(ctx, nil)
	for {
		h.ensure(ctx, h.want())
		select {
		case <-ctx.Done():
			return
		case <-h.kicks:
		case <-tick.C:
		}
	}
}

// ensure answers at the wanted ports and at no others.
func (h *healthPorts) ensure(ctx context.Context, want []healthPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = map[uint16]healthPort{}
	said := map[healthPort]string{}
	tell := func(p healthPort, reason string) {
		p.Local = 0 // a failure of the port, whatever the number
		said[p] = reason
		if h.said[p] != reason {
			h.failed(p, reason)
		}
	}
	for _, p := range want {
		if other, taken := h.now[p.Port]; taken {
			tell(p, fmt.Sprintf("spec.healthCheckNodePort %d is that of Service %s/%s as well, which keeps it: delete the Service and create it anew", p.Port, other.Namespace, other.Name))
			continue
		}
		h.now[p.Port] = p
		if h.open[p.Port] != nil {
			continue
		}
		if err := h.listen(ctx, p.Port); err != nil {
			tell(p, fmt.Sprintf("spec.healthCheckNodePort %d cannot be answered on this node, load balancers will not send here: %v; see what else listens there (ss -ltnp)", p.Port, err))
		}
	}
	for port, server := range h.open {
		if _, wanted := h.now[port]; !wanted {
			_ = server.Close()
			delete(h.open, port)
		}
	}
	h.said = said
}

func (h *healthPorts) listen(ctx context.Context, port uint16) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h.answer(port), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	h.open[port] = server
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.log.WithError(err).WithField("port", port).Warn("a healthCheckNodePort is no longer answered; opening it again")
			h.mu.Lock()
			if h.open[port] == server {
				delete(h.open, port)
			}
			h.mu.Unlock()
			h.kick()
		}
	}()
	return nil
}

// answer says what kube-proxy says: status 200 while there are endpoints here and the flows are in step, else 503.
func (h *healthPorts) answer(port uint16) http.Handler {
	type service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		p := h.now[port]
		h.mu.Unlock()
		healthy := h.healthy()
		header := w.Header()
		header.Set("Content-Type", "application/json")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(p.Local))
		if p.Local == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(struct {
			Service             service `json:"service"`
			LocalEndpoints      int     `json:"localEndpoints"`
			ServiceProxyHealthy bool    `json:"serviceProxyHealthy"`
		}{service{p.Namespace, p.Name}, p.Local, healthy})
	})
}

// healthPortsOf lists Services that have a healthCheckNodePort with their endpoints on a node.
func healthPortsOf(objects []*source.ServiceObject, s *flows.Services, node string) (out []healthPort) {
	for _, o := range objects {
		p := healthPort{Namespace: o.Namespace, Name: o.Name, Port: o.HealthCheckNodePort}
		for _, v4 := range []bool{true, false} {
			p.Local = max(p.Local, localReady(o, s, node, v4))
		}
		out = append(out, p)
	}
	return out
}

// localReady counts the addresses of a family behind any port of a Service that are ready on a node.
func localReady(o *source.ServiceObject, s *flows.Services, node string, v4 bool) int {
	ready := map[string]bool{}
	for _, p := range o.Ports {
		name := cmp.Or(p.Name, fmt.Sprint(p.Port))
		port := s.Port(flows.ServiceOwner(o.Namespace, o.Name, name, p.Protocol))
		if port == nil {
			continue
		}
		for _, e := range port.Endpoints {
			if e.Ready && e.Node == node && e.Address.Is4() == v4 {
				ready[e.Address.String()] = true
			}
		}
	}
	return len(ready)
}

// wantedHealthPorts are those of the Services as they are now.
func (a *Agent) wantedHealthPorts() []healthPort {
	objects, s := a.services.healthChecked()
	return healthPortsOf(objects, s, a.cfg.NodeName)
}

// healthPortFailed tells the operator, at the Service.
func (a *Agent) healthPortFailed(p healthPort, reason string) {
	a.log.WithField("service", p.Namespace+"/"+p.Name).Error(reason)
	a.source.Event(source.Ref{Key: source.Key{Kind: "Service", Namespace: p.Namespace, Name: p.Name}}, source.EventWarning, "TwillHealthCheckNodePort", reason)
}
