package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	"github.com/twill-net/twill/test/cluster"
	"github.com/twill-net/twill/test/lab"
)

// kubeProxy runs the real kube-proxy, in nftables mode, on a node of a lab whose agent leaves Services to it. What it asks an API
// server for it gets from a stand-in that knows these objects and never changes them. stop ends both.
func kubeProxy(ctx context.Context, l *lab.Lab, n *lab.Node, objects []lab.Object) (stop func(), err error) {
	programs, err := cluster.Build(ctx, ".", say)
	if err != nil {
		return nil, fmt.Errorf("kube-proxy: %w", err)
	}
	ns := "/run/netns/" + n.NetNS()
	var listener net.Listener
	if err := lab.Inside(ns, func() (err error) { listener, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		return nil, err
	}
	server := &http.Server{Handler: newStandIn(n, objects), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	defer func() {
		if err != nil {
			server.Close()
		}
	}()

	dir := filepath.Join(lab.Dir(l.Name), "kube-proxy")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config.yaml")
	files := map[string]string{
		kubeconfig: fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"http://%s\"}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"+
			"users: [{name: u, user: {}}]\ncurrent-context: c\n", listener.Addr()),
		// masqueradeAll, as with every network whose pods answer each other past the host; no limits on the host's
		// connection tracking, which is the machine's.
		config: fmt.Sprintf("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclientConnection: {kubeconfig: %q, contentType: application/json, "+
			"acceptContentTypes: application/json}\nmode: nftables\noomScoreAdj: 0\nhostnameOverride: %s\nbindAddress: %s\nmetricsBindAddress: 127.0.0.1:10249\n"+
			"nftables: {masqueradeAll: true}\nconntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n", kubeconfig, n.Name, n.Addresses()[0]),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(programs.Dir, "kube-proxy"), "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := lab.Inside(ns, cmd.Start); err != nil {
		log.Close()
		return nil, fmt.Errorf("kube-proxy: %w", err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		server.Close()
	}, nil
}

// standIn answers what kube-proxy asks an API server: lists, and watches in which nothing happens after what there is.
type standIn struct {
	lists map[string]apiList // by the last word of the URL
	node  map[string]any
}

type apiList struct {
	version, kind string
	items         []map[string]any
}

func newStandIn(n *lab.Node, objects []lab.Object) *standIn {
	var addresses []any
	for _, a := range n.Addresses() {
		addresses = append(addresses, map[string]any{"type": "InternalIP", "address": a.String()})
	}
	node := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": n.Name, "resourceVersion": "1"},
		"status": map[string]any{"addresses": addresses}}
	s := &standIn{node: node, lists: map[string]apiList{
		"nodes": {"v1", "Node", []map[string]any{node}}, "services": {version: "v1", kind: "Service"},
		"endpointslices": {version: "discovery.k8s.io/v1", kind: "EndpointSlice"}, "servicecidrs": {version: "networking.k8s.io/v1", kind: "ServiceCIDR"},
	}}
	for _, o := range objects {
		for name, list := range s.lists {
			if o["kind"] == list.kind {
				list.items = append(list.items, defaulted(o))
				s.lists[name] = list
			}
		}
	}
	return s
}

// defaulted fills in what an API server would.
func defaulted(o lab.Object) map[string]any {
	o["metadata"].(map[string]any)["resourceVersion"] = "1"
	ports, _ := o["ports"].([]any)
	if spec, ok := o["spec"].(map[string]any); ok {
		spec["type"], spec["clusterIP"] = "ClusterIP", spec["clusterIPs"].([]any)[0]
		ports, _ = spec["ports"].([]any)
	}
	for _, p := range ports {
		p.(map[string]any)["protocol"], p.(map[string]any)["name"] = "TCP", ""
	}
	return o
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := json.NewEncoder(w)
	list, known := s.lists[path.Base(r.URL.Path)]
	query := r.URL.Query()
	switch {
	case r.Method != http.MethodGet: // Events
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprint(w, `{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"x"}}`)
	case path.Base(path.Dir(r.URL.Path)) == "nodes":
		_ = answer.Encode(s.node)
	case !known:
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprint(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"NotFound","code":404}`)
	case query.Get("watch") == "":
		_ = answer.Encode(map[string]any{"apiVersion": list.version, "kind": list.kind + "List", "metadata": map[string]any{"resourceVersion": "1"}, "items": list.items})
	default:
		if query.Get("sendInitialEvents") == "true" { // KEP-3157
			for _, o := range list.items {
				_ = answer.Encode(map[string]any{"type": "ADDED", "object": o})
			}
			_ = answer.Encode(map[string]any{"type": "BOOKMARK", "object": map[string]any{"apiVersion": list.version, "kind": list.kind,
				"metadata": map[string]any{"resourceVersion": "1", "annotations": map[string]any{"k8s.io/initial-events-end": "true"}}}})
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}
