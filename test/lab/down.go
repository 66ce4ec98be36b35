package lab

import (
	"context"
	"errors"
	"os"
)

// Down removes a lab: its processes, its namespaces and with them its links, its directory. A lab
// that is not there, or only half there after a crash, is no error.
func Down(ctx context.Context, name string) error {
	l := &Lab{Config: Config{Name: name}, dir: Dir(name)}
	if !nameRule.MatchString(name) {
		_, err := Open(name)
		return err
	}
	if _, err := os.Stat(l.dir); err == nil {
		unlock, err := l.lock()
		if err != nil {
			return err
		}
		defer unlock()
	}
	return l.remove(ctx)
}

// Down removes the lab.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.Name) }

func (l *Lab) remove(ctx context.Context) error {
	var agents []*Node
	for _, n := range l.Nodes() {
		if n.AgentPid() != 0 {
			agents = append(agents, n)
		}
	}
	// Agents first, and gently: they should not see their OVS go and shout about it.
	err := each(ctx, agents, func(ctx context.Context, n *Node) error { return n.endAgent(ctx) })
	err = errors.Join(err, each(ctx, l.Nodes(), func(ctx context.Context, n *Node) error {
		return n.OVS().Stop(ctx)
	}))
	if err := errors.Join(err, removeNamespaces(ctx, l.namespaces(), l.path("nodes"))); err != nil {
		return err
	}
	return os.RemoveAll(l.dir)
}
