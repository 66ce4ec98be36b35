package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// rounds alternate between Twill and the bridge made by hand; each streams for streamSeconds and makes
// exchanges round trips of one byte over one connection.
const (
	rounds        = 5
	streamSeconds = 3
	exchanges     = 4000
)

// end is one end of a conversation: a network namespace by name and its address.
type end struct {
	ns      string
	address netip.Addr
}

// benchTraffic compares pods with the same namespaces on a bridge with two flows, on the same two Open
// vSwitches, through the same kind of tunnel.
func benchTraffic(ctx context.Context, name string) error {
	o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning"}, Nodes: 2}
	return withLab(ctx, o, func(l *lab.Lab) error {
		pods, err := l.AddPods(ctx, []lab.Pod{
			{Namespace: "default", Name: "a", Node: "node-1"}, {Namespace: "default", Name: "b", Node: "node-1"}, {Namespace: "default", Name: "c", Node: "node-2"},
		})
		if err != nil {
			return err
		}
		var twill [3]end
		for i, p := range pods {
			twill[i] = end{strings.TrimPrefix(p.NetNS, "/run/netns/"), p.Addresses[0]}
		}
		hand, err := handMade(ctx, l)
		if err != nil {
			return err
		}
		t := newTable("One TCP stream and one-byte round trips, pod to pod, beside a bridge made by hand with two flows, medians of "+fmt.Sprint(rounds)+" alternating rounds",
			"", "Twill Gbit/s", "by hand", "Twill / by hand", "Twill round trip p50 µs", "p99", "by hand p50", "p99", "by hand / Twill p50")
		for _, way := range []struct {
			title string
			to    int
		}{{"same node", 1}, {"across nodes, Geneve", 2}} {
			say("traffic: %s", way.title)
			if err := compareTraffic(ctx, t, way.title, [2][3]end{twill, hand}, way.to); err != nil {
				return fmt.Errorf("%s: %w", way.title, err)
			}
		}
		return nil
	})
}

func compareTraffic(ctx context.Context, t table, title string, nets [2][3]end, to int) error {
	var gbits, p50, p99 [2][]float64
	for round := range rounds {
		for i := range nets {
			n := (i + round) % 2 // who goes first changes
			from, to := nets[n][0], nets[n][to]
			g, err := stream(ctx, from, to)
			if err != nil {
				return err
			}
			trips, err := roundTrips(ctx, from, to)
			if err != nil {
				return err
			}
			micro := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
			gbits[n] = append(gbits[n], g)
			p50[n] = append(p50[n], micro(trips.quantile(.5)))
			p99[n] = append(p99[n], micro(trips.quantile(.99)))
		}
	}
	t.row(title, digits(median(gbits[0])), digits(median(gbits[1])), digits(median(gbits[0])/median(gbits[1])),
		digits(median(p50[0])), digits(median(p99[0])), digits(median(p50[1])), digits(median(p99[1])), digits(median(p50[1])/median(p50[0])))
	return nil
}

// stream is what iperf3 sends in one TCP connection, in Gbit/s as the receiver counts.
func stream(ctx context.Context, from, to end) (float64, error) {
	server := command(ctx, to.ns, "iperf3", "-s", "-1", "-B", to.address.String())
	if err := server.Start(); err != nil {
		return 0, err
	}
	defer server.Wait()
	if err := awaitListener(ctx, to, 5201); err != nil {
		return 0, err
	}
	client := command(ctx, from.ns, "iperf3", "-c", to.address.String(), "-t", fmt.Sprint(streamSeconds), "-J")
	out, err := client.Output()
	var result struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if jsonErr := json.Unmarshal(out, &result); err != nil || jsonErr != nil || result.Error != "" {
		return 0, fmt.Errorf("iperf3: %v %v %s", err, jsonErr, result.Error)
	}
	return result.End.Received.BitsPerSecond / 1e9, nil
}

// awaitListener waits until a port is listened on, without connecting: iperf3 -1 serves one client only.
func awaitListener(ctx context.Context, at end, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		out, err := command(ctx, at.ns, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port)).Output()
		if err == nil && len(bytes.TrimSpace(out)) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody listens at port %d of %s: %w", port, at.ns, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// roundTrips sends one byte to and fro, many times.
func roundTrips(ctx context.Context, from, to end) (sample, error) {
	var l net.Listener
	err := inNetNS(to.ns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to.address, 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			io.Copy(c, c)
		}
	}()
	var c net.Conn
	if err := inNetNS(from.ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", l.Addr().String())
		return err
	}); err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	var s sample
	b := []byte{1}
	for range exchanges {
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		s = append(s, time.Since(began))
	}
	return s, nil
}
