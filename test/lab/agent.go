package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// readyWithin is how long an agent may take from its start to readiness.
const readyWithin = 30 * time.Second

// agentArgs is the command line of the node's agent.
func (n *Node) agentArgs() []string {
	c := n.lab.Config
	args := []string{filepath.Join(c.BinDir, "twill"), "agent",
		"--node-name", n.Name,
		"--manifests", n.lab.path("manifests"),
		"--bridge", "br-twill",
		"--ovsdb", n.OVS().Endpoint(),
		"--datapath-type", c.Datapath,
		"--tunnel-type", c.Tunnel,
	}
	for _, cidr := range byFamily(c, clusterCIDR4, clusterCIDR6) {
		args = append(args, "--cluster-cidr", cidr)
	}
	return append(args,
		"--cni-bin-dir", n.path("cni", "bin"),
		"--cni-conf-dir", n.path("cni", "net.d"),
		"--cni-plugin", filepath.Join(c.BinDir, "twill-cni"),
		"--cni-socket", n.path("run", "cni.sock"),
		"--admin-socket", n.AdminSocket(),
		"--http-address", "127.0.0.1:9455",
		"--log-level", c.LogLevel)
}

func (n *Node) agentPidfile() string { return n.path("run", "agent.pid") }

// AgentPid is the process ID of the node's agent, 0 when none runs.
func (n *Node) AgentPid() int { return pidOf(n.agentPidfile(), n.lab.dir) }

// StartAgent starts the agent of a node and waits until it is ready. One that runs already is only
// waited for.
func (l *Lab) StartAgent(ctx context.Context, node string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	return l.startAgent(ctx, n)
}

func (l *Lab) startAgent(ctx context.Context, n *Node) error {
	if n.AgentPid() == 0 {
		pid, err := spawn(n.NetNS(), n.LogFile(), n.Env(), n.agentArgs()...)
		if err != nil {
			return err
		}
		if err := writeFile(n.agentPidfile(), []byte(strconv.Itoa(pid)+"\n")); err != nil {
			return err
		}
	}
	return n.waitReady(ctx)
}

// waitReady asks the agent until it says that it is ready and has installed its CNI configuration,
// which is what a kubelet would wait for; or until it has ended, or took too long.
func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin*Slow())
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		reason := n.Ready(ctx)
		if reason == nil {
			_, reason = n.cni()
		}
		if reason == nil {
			return nil
		}
		if n.AgentPid() == 0 {
			return fmt.Errorf("agent of %s ended before it was ready; the end of %s:\n%s", n.Name, n.LogFile(), lastLines(n.LogFile(), 15))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return fmt.Errorf("agent of %s is not ready after %s: %w; the end of %s:\n%s", n.Name, readyWithin*Slow(), reason, n.LogFile(), lastLines(n.LogFile(), 15))
		}
	}
}

// Ready returns nil when the node's agent says that it is ready, and its reason when it is not.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second*Slow())
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.AdminSocket())
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unix/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
}

// StopAgent ends the agent of a node with SIGTERM, as a rolling update does. None running is no error.
func (l *Lab) StopAgent(ctx context.Context, node string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	return n.endAgent(ctx)
}

func (n *Node) endAgent(ctx context.Context) error {
	if pid := n.AgentPid(); pid != 0 {
		if err := end(ctx, pid, unix.SIGTERM); err != nil {
			return fmt.Errorf("stop agent of %s: %w", n.Name, err)
		}
	}
	return nil
}

// KillAgent ends the agent of a node with SIGKILL, as a crash does.
func (l *Lab) KillAgent(ctx context.Context, node string) error {
	n, err := l.Node(node)
	if err != nil {
		return err
	}
	pid := n.AgentPid()
	if pid == 0 {
		return fmt.Errorf("no agent runs on %s: start it with `twill-lab agent start %s`", node, node)
	}
	return end(ctx, pid, unix.SIGKILL)
}

// SetTunnel changes the encapsulation: every agent is restarted with the new --tunnel-type.
func (l *Lab) SetTunnel(ctx context.Context, tunnel string) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	o := Options{Config: l.Config}
	o.Tunnel = tunnel
	o.setDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	l.Config = o.Config
	if err := l.save(); err != nil {
		return err
	}
	return each(ctx, l.Nodes(), func(ctx context.Context, n *Node) error {
		if n.AgentPid() == 0 {
			return nil // it will start with the new one
		}
		if err := n.endAgent(ctx); err != nil {
			return err
		}
		return l.startAgent(ctx, n)
	})
}

// lastLines is the end of a log file, for an error that has to explain itself.
func lastLines(path string, count int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
