package agent

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// health gathers what has to be right for the agent to be ready. Each check is cheap and answers for
// now; a watcher that died fails its check, so that readiness never rests on the past.
type health struct {
	mu     sync.Mutex
	order  []string
	checks map[string]func() error
}

func newHealth() *health { return &health{checks: map[string]func() error{}} }

// watch adds a check, or replaces the one of the same name.
func (h *health) watch(name string, check func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.checks[name]; !ok {
		h.order = append(h.order, name)
	}
	h.checks[name] = check
}

// problems lists what is wrong, one line for each failing check, in the order in which they were added.
// Checks named in except are left out.
func (h *health) problems(except ...string) []string {
	h.mu.Lock()
	names, checks := append([]string(nil), h.order...), make(map[string]func() error, len(h.checks))
	for n, c := range h.checks {
		checks[n] = c
	}
	h.mu.Unlock()
	var out []string
	for _, n := range names {
		if slices.Contains(except, n) {
			continue
		}
		if err := checks[n](); err != nil {
			out = append(out, fmt.Sprintf("%s: %v", n, err))
		}
	}
	return out
}

// notReady lists why the agent is not ready; empty when it is.
func (a *Agent) notReady() []string { return a.health.problems() }

// Names of checks that pods can be attached without.
const (
	checkKubernetes = "kubernetes"
	checkInstalled  = "cni configuration"
)

// canAttach is nil when an ADD would succeed. The API server may be away: what was read before stays in
// force.
func (a *Agent) canAttach() error {
	return joined(a.health.problems(checkKubernetes, checkInstalled))
}

func joined(problems []string) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, errors.New(p))
	}
	return errors.Join(errs...)
}
