package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/agent/preview"
)

// maxSilence is how long the loop may be silent before /livez fails. The audit makes it pass at least
// each --audit-interval; a pass that waits for a slow Open vSwitch is far shorter.
const maxSilence = 5 * time.Minute

// shutdownGrace is how long requests in flight may take once the agent stops.
const shutdownGrace = 2 * time.Second

// serveHTTP answers /metrics, /livez and /readyz.
func (a *Agent) serveHTTP(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.HTTPAddress)
	if err != nil {
		return fmt.Errorf("--http-address %s: %w; choose another one", a.cfg.HTTPAddress, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.meter.registry, promhttp.HandlerOpts{}))
	a.healthEndpoints(mux)
	return serve(ctx, l, mux)
}

// serveAdmin answers the operator's tools on a socket that only root can open.
func (a *Agent) serveAdmin(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(a.cfg.AdminSocket), 0o700); err != nil {
		return fmt.Errorf("--admin-socket %s: %w", a.cfg.AdminSocket, err)
	}
	if answers(ctx, a.cfg.AdminSocket) {
		return fmt.Errorf("--admin-socket %s: another agent listens there; stop it, or choose another path", a.cfg.AdminSocket)
	}
	if err := os.Remove(a.cfg.AdminSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--admin-socket %s: %w", a.cfg.AdminSocket, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", a.cfg.AdminSocket)
	if err != nil {
		return fmt.Errorf("--admin-socket %s: %w", a.cfg.AdminSocket, err)
	}
	if err := os.Chmod(a.cfg.AdminSocket, 0o600); err != nil {
		return fmt.Errorf("--admin-socket %s: %w", a.cfg.AdminSocket, err)
	}
	mux := http.NewServeMux()
	a.healthEndpoints(mux)
	mux.HandleFunc("GET /v1/status", inspect.Answer(func(ctx context.Context, _ url.Values) (any, error) { return a.status(ctx), nil }))
	subject := a.subject()
	mux.HandleFunc("GET /v1/report", a.serveReport(subject))
	inspect.Register(mux, subject)
	preview.Register(mux, a.objects)
	return serve(ctx, l, mux)
}

// answers is true when somebody listens on a unix socket, or may do so: only a connection that is refused and
// a socket that is not there tell that nobody does.
func answers(ctx context.Context, socket string) bool {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist)
	}
	c.Close()
	return true
}

func (a *Agent) healthEndpoints(mux *http.ServeMux) {
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if age := a.loop.silence(); age > maxSilence {
			http.Error(w, fmt.Sprintf("the loop has made no pass for %s", age.Round(time.Second)), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		problems := a.notReady()
		if len(problems) > 0 {
			http.Error(w, strings.Join(problems, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", l.Addr(), err)
	}
	return nil
}
