package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/source"
)

const (
	// reportInterval is how often readiness is looked at.
	reportInterval = time.Second
	// reportPatience is how long the agent may be not ready, for the same reasons, before an Event says so:
	// a restart of something takes less.
	reportPatience = 15 * time.Second
	// reportTimeout bounds one request.
	reportTimeout = 10 * time.Second
)

// Reasons of Events at the Node.
const (
	eventReady    = "TwillReady"
	eventNotReady = "TwillNotReady"
	eventClock    = "TwillClockSkew"
)

// networkReporter is a source that can tell Kubernetes that pods of a node can be reached.
type networkReporter interface {
	NetworkAvailable(ctx context.Context, node string) (changed bool, err error)
}

// report tells Kubernetes how this node does: the Node's condition NetworkUnavailable becomes false once the agent is
// ready (and again whenever somebody else sets it); what keeps the agent from being ready becomes an Event at the Node.
func (a *Agent) report(ctx context.Context) {
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	r := reporter{node: a.cfg.NodeName, event: a.source.Event}
	c := clockReporter{node: a.cfg.NodeName, event: a.source.Event, log: a.log}
	var said string
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			problems := a.notReady()
			r.look(problems, now)
			skew, _ := a.source.Skew()
			c.look(skew)
			to, ok := a.source.(networkReporter)
			if !ok || len(problems) > 0 {
				continue
			}
			asking, cancel := context.WithTimeout(ctx, reportTimeout)
			changed, err := to.NetworkAvailable(asking, a.cfg.NodeName)
			cancel()
			switch {
			case err != nil && err.Error() != said && ctx.Err() == nil:
				said = err.Error()
				a.log.WithError(err).Warn("trying again")
			case changed:
				said = ""
				a.log.Info("condition NetworkUnavailable of the Node is now false")
			}
		}
	}
}

// clockReporter tells in an Event, once, that the node's clock is wrong. The node is as ready as before: what cannot work
// with such a clock says so itself.
type clockReporter struct {
	node  string
	event func(about source.Ref, eventType, reason, message string)
	log   logrus.FieldLogger

	wrong bool // as of the last look
}

func (c *clockReporter) look(skew time.Duration) {
	problem := source.SkewProblem(skew)
	if (problem != "") == c.wrong {
		return
	}
	c.wrong = !c.wrong
	if !c.wrong {
		c.log.Info("the clock of this node agrees with the API server's again")
		return
	}
	c.log.Warn(problem)
	c.event(source.Ref{Key: source.Key{Kind: "Node", Name: c.node}}, source.EventWarning, eventClock, problem)
}

// reporter turns readiness into Events: one when the agent becomes ready, one when it has not been for a while, and
// one when the reasons are others.
type reporter struct {
	node  string
	event func(about source.Ref, eventType, reason, message string)

	problems []string  // as of the last look
	since    time.Time // since when they are these
	told     string    // the last Event
}

func (r *reporter) look(problems []string, now time.Time) {
	if !slices.Equal(problems, r.problems) || r.since.IsZero() {
		r.problems, r.since = slices.Clone(problems), now
	}
	eventType, reason, message := source.EventNormal, eventReady, "pods of this node can be attached and reached"
	if len(problems) > 0 {
		if now.Sub(r.since) < reportPatience {
			return
		}
		eventType, reason, message = source.EventWarning, eventNotReady, strings.Join(problems, "; ")
	}
	if message != r.told {
		r.told = message
		r.event(source.Ref{Key: source.Key{Kind: "Node", Name: r.node}}, eventType, reason, message)
	}
}
