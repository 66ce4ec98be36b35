package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// counters are metrics of an agent: name with labels, as in the text format, to value.
type counters map[string]float64

// Names of metrics that are reported.
const (
	bundles      = `twill_bundles_total{result="ok"}`
	transactions = "twill_ovsdb_transactions_total"
	cniSeconds   = `twill_cni_operation_duration_seconds_sum{command=%q}` // of a CNI command
	cniCount     = `twill_cni_operation_duration_seconds_count{command=%q}`
)

// readCounters asks the agent of a node.
func readCounters(ctx context.Context, n *lab.Node) (counters, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = inNetNS(n.NetNS(), func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
			return c, err
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9455/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics of %s: %s", n.Name, resp.Status)
	}
	c, err := parseCounters(resp.Body)
	if err != nil {
		return nil, err
	}
	db, daemon := n.OVS().Pids()
	for _, pid := range []int{n.AgentPid(), db, daemon} {
		took, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		c[cpuSeconds] += took.Seconds()
	}
	return c, nil
}

// cpuSeconds is not among the metrics: the time on processors of the agent with its children, ovsdb-server and
// ovs-vswitchd.
const cpuSeconds = "cpu"

func (c counters) cpu() time.Duration { return time.Duration(c[cpuSeconds] * float64(time.Second)) }

func parseCounters(r io.Reader) (counters, error) {
	c := counters{}
	in := bufio.NewScanner(r)
	for in.Scan() {
		if name, value, ok := strings.Cut(in.Text(), " "); ok && name != "#" {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				c[name] = v
			}
		}
	}
	return c, in.Err()
}

// since subtracts what was counted before.
func (c counters) since(before counters, name string) float64 { return c[name] - before[name] }

// inNetNS calls f on a thread inside a named namespace. Sockets made there stay there.
func inNetNS(name string, f func() error) error {
	return lab.Inside(filepath.Join("/run/netns", name), f)
}
