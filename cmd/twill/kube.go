package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
)

// kube reaches the agents of a cluster through the API server, as `kubectl exec` would: it runs `twill ask` in
// the agent's pod. So it needs the permission for pods/exec there, and nothing else on the nodes.
type kube struct {
	plugin              bool
	kubeconfig, context string
	namespace, selector string
	on                  string
}

// agentSelector and agentContainer are how the agent's pods are told from others, agentNamespace where they are.
const (
	agentSelector  = "app.kubernetes.io/name=twill,app.kubernetes.io/component=agent"
	agentContainer = "agent"
	agentNamespace = "twill-system"
)

func (k *kube) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.on, "on", "", "node whose agent is asked, through the API server")
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "kubeconfig file; empty means as kubectl does")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig")
	f.StringVar(&k.namespace, "agent-namespace", agentNamespace, "namespace of the agents' pods")
	f.StringVar(&k.selector, "agent-selector", agentSelector, "labels of the agents' pods")
}

// used is true for the plugin, and when a node was named that is reached only so.
func (k *kube) used() bool { return k.plugin || k.on != "" }

// session is a connection to an API server.
type session struct {
	config *rest.Config
	client *rest.RESTClient
	codec  runtime.ParameterCodec
}

func (k *kube) session() (*session, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no cluster to ask: %w; set --kubeconfig, or run twill on the node itself", err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("access to the cluster: %w", err)
	}
	return &session{config, client, runtime.NewParameterCodec(scheme)}, nil
}

// agents are the agents' pods by node.
func (k *kube) agents(ctx context.Context, s *session) (map[string]corev1.Pod, error) {
	var list corev1.PodList
	err := s.client.Get().Namespace(k.namespace).Resource("pods").
		VersionedParams(&metav1.ListOptions{LabelSelector: k.selector}, metav1.ParameterCodec).Do(ctx).Into(&list)
	if err != nil {
		return nil, fmt.Errorf("listing the agents' pods in namespace %s: %w", k.namespace, err)
	}
	out := map[string]corev1.Pod{}
	for _, p := range list.Items {
		if was, ok := out[p.Spec.NodeName]; !ok || was.Status.Phase != corev1.PodRunning {
			out[p.Spec.NodeName] = p
		}
	}
	delete(out, "") // not scheduled yet
	if len(out) == 0 {
		return nil, fmt.Errorf("no agent in namespace %s has the labels %s: is Twill installed there? else set --agent-namespace and --agent-selector", k.namespace, k.selector)
	}
	return out, nil
}

// nodes are all nodes with an agent, or the one that --on names.
func (k *kube) nodes(ctx context.Context) ([]string, error) {
	if k.on != "" {
		return []string{k.on}, nil
	}
	s, err := k.session()
	if err != nil {
		return nil, err
	}
	agents, err := k.agents(ctx, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for n := range agents {
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

// candidates are the nodes whose agents may know a name: the API server knows where a pod is.
func (k *kube) candidates(ctx context.Context, name string) ([]string, error) {
	s, err := k.session()
	if err != nil {
		return nil, err
	}
	var pod corev1.Pod
	if a, err := netip.ParseAddr(name); err == nil {
		var list corev1.PodList
		err := s.client.Get().Resource("pods").VersionedParams(&metav1.ListOptions{FieldSelector: "status.podIP=" + a.String()}, metav1.ParameterCodec).Do(ctx).Into(&list)
		if err == nil && len(list.Items) > 0 {
			return []string{list.Items[0].Spec.NodeName}, nil
		}
		return k.nodes(ctx)
	}
	if strings.HasPrefix(name, servicePrefix) {
		return k.nodes(ctx) // each knows all
	}
	if ns, p, ok := strings.Cut(name, "/"); ok && ns != "node" {
		if err := s.client.Get().Namespace(ns).Resource("pods").Name(p).Do(ctx).Into(&pod); err != nil {
			return nil, fmt.Errorf("pod %s: %w", name, err)
		}
		if pod.Spec.NodeName == "" {
			return nil, fmt.Errorf("pod %s is on no node yet (%s)", name, pod.Status.Phase)
		}
		return []string{pod.Spec.NodeName}, nil
	}
	if node, ok := strings.CutPrefix(name, "node/"); ok {
		return []string{node}, nil
	}
	return k.nodes(ctx)
}

// way reaches the agent of a node; an empty one is that of --on, or the only one there is.
func (k *kube) way(ctx context.Context, node string) (http.RoundTripper, error) {
	s, err := k.session()
	if err != nil {
		return nil, err
	}
	agents, err := k.agents(ctx, s)
	if err != nil {
		return nil, err
	}
	if node == "" {
		node = k.on
	}
	if node == "" && len(agents) == 1 {
		for only := range agents {
			node = only
		}
	}
	if node == "" {
		return nil, fmt.Errorf("say which of the %d nodes is meant with --on NODE", len(agents))
	}
	pod, ok := agents[node]
	if !ok {
		return nil, fmt.Errorf("no agent runs on node %s: `kubectl -n %s get pods -l %s -o wide`", node, k.namespace, k.selector)
	}
	if pod.Status.Phase != corev1.PodRunning {
		return nil, fmt.Errorf("the agent of node %s (pod %s/%s) is %s: `kubectl -n %s describe pod %s`", node, pod.Namespace, pod.Name, pod.Status.Phase, pod.Namespace, pod.Name)
	}
	return execWay{s, pod, k.command}, nil
}

// command is what is run in the agent's pod for a request.
func (k *kube) command(path string) []string { return []string{"twill", "ask", path} }

// execWay carries a request into a pod.
type execWay struct {
	*session
	pod     corev1.Pod
	command func(path string) []string
}

func (e execWay) RoundTrip(req *http.Request) (*http.Response, error) {
	u := e.client.Post().Namespace(e.pod.Namespace).Resource("pods").Name(e.pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: agentContainer, Command: e.command(req.URL.RequestURI()), Stdout: true, Stderr: true}, e.codec).URL()
	x, err := e.executor(u)
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	if err := x.StreamWithContext(req.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return nil, fmt.Errorf("asking the agent of node %s (pod %s/%s): %w: %s", e.pod.Spec.NodeName, e.pod.Namespace, e.pod.Name, err, strings.TrimSpace(errs.String()))
	}
	return readAnswer(&out)
}

// executor prefers WebSocket and falls back to SPDY, as kubectl does.
func (e execWay) executor(u *url.URL) (remotecommand.Executor, error) {
	web, err := remotecommand.NewWebSocketExecutor(e.config, http.MethodGet, u.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(e.config, http.MethodPost, u)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(web, spdy, func(error) bool { return true })
}

// An answer on a pipe is its status on the first line, then its body.

func writeAnswer(w io.Writer, code int, body []byte) error {
	_, err := fmt.Fprintf(w, "twill %d\n%s", code, body)
	return err
}

func readAnswer(b *bytes.Buffer) (*http.Response, error) {
	head, err := b.ReadString('\n')
	code, number := 0, strings.TrimSuffix(strings.TrimPrefix(head, "twill "), "\n")
	if err == nil {
		code, err = strconv.Atoi(number)
	}
	if err != nil {
		return nil, errors.New("the agent's answer is no answer of `twill ask`: it is of another version; use the twill of the agent's image")
	}
	return &http.Response{StatusCode: code, Body: io.NopCloser(b)}, nil
}

// askCommand is the other end of execWay, in the agent's pod.
func askCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "ask PATH", Short: "Carry one question to the agent of this node; kubectl twill uses it", Hidden: true,
		Example: "  twill ask /v1/status", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := url.ParseRequestURI(args[0])
			if err != nil {
				return err
			}
			body, err := c.fetch(cmd.Context(), "", u.Path, u.Query())
			var r refusal
			if errors.As(err, &r) {
				return writeAnswer(cmd.OutOrStdout(), r.code, []byte(r.text))
			}
			if err != nil {
				return err
			}
			return writeAnswer(cmd.OutOrStdout(), http.StatusOK, body)
		},
	}
	c.flags(cmd)
	return cmd
}
