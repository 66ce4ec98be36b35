package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twill-net/twill/test/lab"
)

const (
	// turns is how many times each way is measured, by turns.
	turns = 3
	// talking is how long connections are opened, and round trips made, each way and round.
	talking = 2 * time.Second
)

// benchConnections opens connections through a Service, alone and among many, by way of Twill and of kube-proxy.
func benchConnections(ctx context.Context, name string) error {
	c := newTable("Services: connections by a ClusterIP beside the pod's own address, same node",
		"Services by", "10,000 Services beside it", "to", "connections/s, 8 at once, median of 3", "round trip of an open connection, p50 µs", "p99")
	// kube-proxy is not measured beside many: it took more than a minute for its first nft transaction here, and refused
	// connections after that.
	return errors.Join(serviceLab(ctx, name, c, false, "on"), serviceLab(ctx, name, c, false, "off"), serviceLab(ctx, name, c, true, "on"))
}

// serviceLab makes a lab whose agent serves Services (proxy "on"), or leaves them to kube-proxy.
func serviceLab(ctx context.Context, name string, t table, crowded bool, proxy string) error {
	if err := os.Setenv("TWILL_SERVICE_PROXY", proxy); err != nil {
		return err
	}
	defer os.Unsetenv("TWILL_SERVICE_PROXY")
	o := lab.Options{Config: lab.Config{Name: name, IPFamily: "ipv4", LogLevel: "warning"}, Nodes: 1}
	return withLab(ctx, o, func(l *lab.Lab) error { return serviceConnections(ctx, l, t, crowded, proxy == "off") })
}

// serviceConnections compares the two ways to one pod, by way of Twill's flows or of kube-proxy.
func serviceConnections(ctx context.Context, l *lab.Lab, t table, crowded, byKubeProxy bool) error {
	pods, err := l.AddPods(ctx, []lab.Pod{{Name: "client", Node: "node-1"}, {Name: "server", Node: "node-1"}})
	if err != nil {
		return err
	}
	client, server := pods[0].NetNS, pods[1]
	var listener net.Listener
	if err := lab.Inside(server.NetNS, func() (err error) { listener, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		return err
	}
	defer listener.Close()
	go echo(listener)
	services := 1
	if crowded {
		services = 10_000
	}
	var b bytes.Buffer
	for i := 1; i < services; i++ {
		writeService(&b, i, 2, 0)
	}
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s0, namespace: default}\nspec: {clusterIPs: [%q], ports: [{port: 80}]}\n"+
		"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s0-0, namespace: default, labels: {kubernetes.io/service-name: s0}}\n"+
		"addressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [%q], nodeName: node-1}]\n", clusterIP(0), server.Addresses[0])
	if byKubeProxy {
		stop, err := startKubeProxy(ctx, l, client, b.Bytes())
		if err != nil {
			return err
		}
		defer stop()
	} else if err := startServices(ctx, l, services-1, b.Bytes()); err != nil {
		return err
	}
	ways := []struct {
		name  string
		at    netip.AddrPort
		rates []float64
		trips sample
	}{{name: "the pod", at: netip.AddrPortFrom(server.Addresses[0], 8080)}, {name: "the ClusterIP", at: netip.AddrPortFrom(clusterIP(0), 80)}}
	for range turns { // by turns, so that whoever else uses the machine slows both down
		for i := range ways {
			w := &ways[i]
			rate, err := connectionRate(client, w.at)
			if err != nil {
				return err
			}
			trips, err := exchangeTimes(client, w.at)
			if err != nil {
				return err
			}
			w.rates, w.trips = append(w.rates, rate), append(w.trips, trips...)
		}
	}
	for _, w := range ways {
		t.row(map[bool]string{true: "kube-proxy, nftables", false: "Twill"}[byKubeProxy], map[bool]string{true: "yes", false: "no"}[crowded], w.name,
			fmt.Sprintf("%.0f", median(w.rates)), digits(float64(w.trips.quantile(.5).Nanoseconds())/1000), digits(float64(w.trips.quantile(.99).Nanoseconds())/1000))
	}
	return nil
}

// startServices gives Services to the agent and waits for the flows of the first and of the last.
func startServices(ctx context.Context, l *lab.Lab, last int, text []byte) error {
	if err := applyText(l, text); err != nil {
		return err
	}
	_, d, err := onlyNode(ctx, l)
	if err != nil {
		return err
	}
	defer d.Close()
	return errors.Join(awaitService(ctx, d, 0, "group"), awaitService(ctx, d, last, "group"))
}

// startKubeProxy gives them to kube-proxy and waits until the first one answers: it writes all at once.
func startKubeProxy(ctx context.Context, l *lab.Lab, client string, text []byte) (stop func(), err error) {
	objects, err := lab.ParseManifests(text)
	if err != nil {
		return nil, err
	}
	n, err := l.Node("node-1")
	if err != nil {
		return nil, err
	}
	if stop, err = kubeProxy(ctx, l, n, objects); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		c, err := open(client, netip.AddrPortFrom(clusterIP(0), 80))
		if err == nil {
			return stop, c.Close()
		}
		if ctx.Err() != nil {
			log, _ := os.ReadFile(filepath.Join(lab.Dir(l.Name), "kube-proxy", "log"))
			stop()
			return nil, fmt.Errorf("kube-proxy does not serve %s: %w\n%s", clusterIP(0), err, log[max(0, len(log)-2000):])
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // a refusal comes at once
		}
	}
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for b := make([]byte, 1); ; {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// exchangeOnce is a byte there and back.
func exchangeOnce(c net.Conn) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := c.Read(b)
	return err
}

func open(ns string, at netip.AddrPort) (c net.Conn, err error) {
	err = lab.Inside(ns, func() error { c, err = net.DialTimeout("tcp", at.String(), 5*time.Second); return err })
	return c, err
}

// connectionRate is how many connections a second eight clients open, use for a byte each way, and close.
func connectionRate(ns string, at netip.AddrPort) (float64, error) {
	var done atomic.Int64
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for time.Since(began) < talking {
				c, err := open(ns, at)
				if err == nil {
					err = exchangeOnce(c)
					c.Close()
				}
				if err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, fmt.Errorf("connecting to %s: %w", at, err)
	default:
		return float64(done.Load()) / took.Seconds(), nil
	}
}

func exchangeTimes(ns string, at netip.AddrPort) (out sample, err error) {
	c, err := open(ns, at)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for began := time.Now(); time.Since(began) < talking; {
		sent := time.Now()
		if err := exchangeOnce(c); err != nil {
			return nil, fmt.Errorf("round trip to %s: %w", at, err)
		}
		out = append(out, time.Since(sent))
	}
	return out, nil
}
