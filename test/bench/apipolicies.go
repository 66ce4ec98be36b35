package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/twill-net/twill/test/cluster"
	"github.com/twill-net/twill/test/lab"
)

// clusterName is that of the cluster in which policies are written to a real API server.
const clusterName = "bench"

// writers is how many requests for a policy are under way at once while a cluster is filled with them.
const writers = 16

// benchAPI is the part of benchPolicies that has an API server: a real cluster of one node, whose agent sees policies
// as any agent does.
func benchAPI(ctx context.Context, _ string) (err error) {
	programs, err := cluster.Build(ctx, ".", say)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "twill-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	images, err := programs.BuildImages(ctx, ".", dir)
	if err != nil {
		return err
	}
	c, err := cluster.Up(ctx, cluster.Options{Name: clusterName, Nodes: 1, Programs: programs, Images: images, Log: say})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, c.Down(ctx))
	}()
	b := apiBench{c: c}
	if err := b.prepare(ctx); err != nil {
		return errors.Join(err, errors.New(c.Describe(ctx)))
	}
	return b.latency(ctx)
}

type apiBench struct {
	c              *cluster.Cluster
	http           *http.Client
	address        string // of the API server
	client, server lab.Pod
}

// prepare installs Twill and starts a client, a server, and a pod that some of the other policies select.
func (b *apiBench) prepare(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", b.c.Kubeconfig("admin"))
	if err != nil {
		return err
	}
	config.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = lab.Inside(b.c.ControlNetNS(), func() error { conn, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
		return conn, err
	}
	if b.http, err = rest.HTTPClientFor(config); err != nil {
		return err
	}
	b.address = config.Host
	if err := b.c.Install(ctx, "."); err != nil {
		return err
	}
	if err := b.c.Ready(ctx, 3*time.Minute); err != nil {
		return err
	}
	var namespaces strings.Builder
	for i := range 100 {
		fmt.Fprintf(&namespaces, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: ns-%d}}\n", i)
	}
	namespaces.WriteString("---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n")
	if _, err := b.c.KubectlStdin(ctx, namespaces.String(), "create", "-f", "-"); err != nil {
		return err
	}
	pods := []*lab.Pod{{Namespace: "shop", Name: "client"}, {Namespace: "shop", Name: "server"}, {Namespace: "ns-0", Name: "app-0"}}
	for _, p := range pods {
		if err := b.pod(ctx, p); err != nil {
			return err
		}
	}
	b.client, b.server = *pods[0], *pods[1]
	return nil
}

// pod starts a pod with a label app that is its name, and finds its address and network namespace.
func (b *apiBench) pod(ctx context.Context, p *lab.Pod) error {
	manifest := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, labels: {app: %[2]s}}, spec: {terminationGracePeriodSeconds: 0, "+
		"containers: [{name: c, image: %q, imagePullPolicy: Never, command: [sleep, inf]}]}}", p.Namespace, p.Name, cluster.BusyboxImage)
	if err := cluster.Eventually(ctx, time.Minute, func(ctx context.Context) error { // a namespace's service account comes a little later
		_, err := b.c.KubectlStdin(ctx, manifest, "create", "-f", "-")
		return err
	}); err != nil {
		return err
	}
	if _, err := b.c.Kubectl(ctx, "-n", p.Namespace, "wait", "--for=condition=Ready", "pod/"+p.Name, "--timeout=2m"); err != nil {
		return err
	}
	ip, err := b.c.Kubectl(ctx, "-n", p.Namespace, "get", "pod", p.Name, "-o", "jsonpath={.status.podIP}")
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return err
	}
	p.Addresses = []netip.Addr{a}
	p.NetNS, err = b.c.Nodes[0].PodNetNS(ctx, ip)
	return err
}

// policies sends a request about NetworkPolicies of a namespace, with a manifest unless that is empty.
func (b *apiBench) policies(ctx context.Context, method, namespace, name, manifest string) error {
	url := b.address + path.Join("/apis/networking.k8s.io/v1/namespaces", namespace, "networkpolicies", name)
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(manifest))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/yaml")
	resp, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, said)
	}
	return err
}

func (b *apiBench) latency(ctx context.Context) error {
	t := newTable("A NetworkPolicy more, written to a real API server: from the request to the first probe that is blocked, one probe each "+probing.String(),
		"other policies", "changes", "p50 ms", "p99 ms", "slowest ms", "the request itself, p50 ms", "p99 ms")
	have := 0
	for _, n := range []int{0, 1000, 10000} {
		say("api: %d other policies", n)
		if err := b.fill(ctx, have, n); err != nil {
			return err
		}
		have = n
		if _, _, err := b.change(ctx); err != nil { // the agent sees it after all the others
			return fmt.Errorf("beside %d policies: %w", n, err)
		}
		var blocked, answered sample
		for range changes {
			took, request, err := b.change(ctx)
			if err != nil {
				return fmt.Errorf("beside %d policies: %w", n, err)
			}
			blocked, answered = append(blocked, took), append(answered, request)
		}
		t.row(fmt.Sprint(n), fmt.Sprint(changes), ms(blocked.quantile(.5)), ms(blocked.quantile(.99)), ms(blocked.quantile(1)),
			ms(answered.quantile(.5)), ms(answered.quantile(.99)))
	}
	return nil
}

// fill creates others from the first to the last.
func (b *apiBench) fill(ctx context.Context, from, to int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i, manifest := range strings.Split(others(to), "---\n")[1:] {
		if i >= from {
			g.Go(func() error { return b.policies(ctx, http.MethodPost, fmt.Sprintf("ns-%d", i%100), "", manifest) })
		}
	}
	return g.Wait()
}

// change creates the policy while probes run, and deletes it again.
func (b *apiBench) change(ctx context.Context) (blocked, request time.Duration, err error) {
	return timeBlocked(ctx, b.client, b.server,
		func() error { return b.policies(ctx, http.MethodPost, "shop", "", denyServer) },
		func() error { return b.policies(ctx, http.MethodDelete, "shop", "deny", "") })
}
