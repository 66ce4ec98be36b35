package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Pod is a pod of the lab: a network namespace attached to its node by CNI, and a Pod object.
type Pod struct {
	// Namespace is the Kubernetes namespace. Default: default.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Node is where the pod runs. Default: node-1.
	Node   string            `json:"node"`
	Labels map[string]string `json:"labels,omitempty"`
	// HostPorts are what the runtime asks of a plugin with the capability portMappings, such as portmap.
	HostPorts []HostPort `json:"hostPorts,omitempty"`

	// What AddPod fills in.

	UID string `json:"uid"`
	// Sandbox is the CNI container ID.
	Sandbox string `json:"sandbox"`
	// NetNS is the path of the pod's network namespace.
	NetNS string `json:"netns"`
	// Addresses are the addresses of eth0 in the order of the CNI result. Empty: not attached.
	Addresses []netip.Addr `json:"addresses"`
}

// HostPort is a port of a pod that is served at its node, as in spec.containers[].ports[]; it is passed to plugins as it
// is here (CONVENTIONS.md of CNI, portMappings).
type HostPort struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp
}

// String is namespace/name.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// podNS is the name of a pod's network namespace. An underscore is in no name of Kubernetes.
func (l *Lab) podNS(namespace, name string) string {
	return l.namespace("p-" + namespace + "_" + name)
}

func (l *Lab) podFile(namespace, name string) string {
	return l.path("pods", namespace+"_"+name+".json")
}

// AddPod makes the pod's namespace and attaches it by the CNI configuration that the agent installed
// on the node. When that fails, nothing of the pod is left.
func (l *Lab) AddPod(ctx context.Context, p Pod) (Pod, error) {
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.Node == "" {
		p.Node = l.node(1).Name
	}
	if p.UID == "" {
		p.UID = newUID()
	}
	if _, err := complete(p.Manifest()[0]); err != nil {
		return p, err
	}
	n, err := l.Node(p.Node)
	if err != nil {
		return p, err
	}
	p.Sandbox = strings.ReplaceAll(newUID()+newUID(), "-", "") // 64 characters, as containerd's
	ns := l.podNS(p.Namespace, p.Name)
	p.NetNS = netnsPath(ns)
	if err := l.claim(p); err != nil {
		return p, err
	}
	if err := l.attach(ctx, n, &p); err != nil {
		ctx := context.WithoutCancel(ctx)
		// As a container runtime does: a failed ADD is followed by a DEL.
		if conf, cniErr := n.cni(); cniErr == nil {
			err = errors.Join(err, conf.Del(ctx, p))
		}
		_, delErr := l.Delete(p.Manifest())
		return p, errors.Join(fmt.Errorf("add pod %s on %s: %w", p, p.Node, err),
			delErr, removeNamespaces(ctx, []string{ns}, ""), l.forget(p))
	}
	return p, nil
}

// AddPods adds pods, all at once, and returns them in the order given. The first error is returned;
// pods that were added stay.
func (l *Lab) AddPods(ctx context.Context, pods []Pod) ([]Pod, error) {
	added := slices.Clone(pods)
	indices := make([]int, len(pods))
	for i := range indices {
		indices[i] = i
	}
	return added, each(ctx, indices, func(ctx context.Context, i int) (err error) {
		added[i], err = l.AddPod(ctx, pods[i])
		return err
	})
}

// claim writes the pod's record, unless there is one.
func (l *Lab) claim(p Pod) error {
	f, err := os.OpenFile(l.podFile(p.Namespace, p.Name), os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("pod %s exists already: remove it first with `twill-lab pod rm %s -n %s`", p, p.Name, p.Namespace)
	}
	if err != nil {
		return err
	}
	f.Close()
	return l.record(p)
}

func (l *Lab) record(p Pod) error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(l.podFile(p.Namespace, p.Name), data)
}

func (l *Lab) forget(p Pod) error {
	err := os.Remove(l.podFile(p.Namespace, p.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (l *Lab) attach(ctx context.Context, n *Node, p *Pod) error {
	if _, err := l.Apply(p.Manifest()); err != nil {
		return err
	}
	if err := ip(ctx, "", "netns add "+filepath.Base(p.NetNS)); err != nil {
		return err
	}
	if err := ip(ctx, filepath.Base(p.NetNS), "link set lo up"); err != nil {
		return err
	}
	conf, err := n.cni()
	if err != nil {
		return err
	}
	result, err := conf.Add(ctx, *p)
	if err != nil {
		return err
	}
	p.Addresses = addressesOf(result)
	if err := l.record(*p); err != nil {
		return err
	}
	_, err = l.Apply(p.Manifest())
	return err
}

// addressesOf picks the addresses of the container's own interface.
func addressesOf(r *current.Result) []netip.Addr {
	var addresses []netip.Addr
	for _, ip := range r.IPs {
		if ip.Interface != nil && (*ip.Interface >= len(r.Interfaces) || r.Interfaces[*ip.Interface].Sandbox == "") {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addresses = append(addresses, a.Unmap())
		}
	}
	return addresses
}

// manifest is the Pod object that the cluster would have.
// Manifest is the Pod object that the cluster would have.
func (p Pod) Manifest() []Object {
	o := newObject("Pod", p.Namespace, p.Name)
	metadata := o["metadata"].(map[string]any)
	metadata["uid"] = p.UID
	delete(metadata, "creationTimestamp") // Apply keeps the first
	if len(p.Labels) > 0 {
		metadata["labels"] = p.Labels
	}
	o["spec"] = map[string]any{"nodeName": p.Node, "containers": []any{map[string]any{"name": "main", "image": "none"}}}
	status := map[string]any{"phase": "Pending"}
	if len(p.Addresses) > 0 {
		var ips []any
		for _, a := range p.Addresses {
			ips = append(ips, map[string]any{"ip": a.String()})
		}
		status = map[string]any{"phase": "Running", "podIP": p.Addresses[0].String(), "podIPs": ips}
	}
	o["status"] = status
	return []Object{o}
}

// Pod finds a pod by name or namespace/name.
func (l *Lab) Pod(ref string) (Pod, error) {
	namespace, name, ok := strings.Cut(ref, "/")
	if !ok {
		namespace, name = "default", ref
	}
	p, err := readPod(l.podFile(namespace, name))
	if errors.Is(err, fs.ErrNotExist) {
		return Pod{}, fmt.Errorf("lab %q has no pod %s/%s: see `twill-lab status --name %s`, or add it with `twill-lab pod add %s -n %s`", l.Name, namespace, name, l.Name, name, namespace)
	}
	return p, err
}

// Pods lists the lab's pods, attached or about to be, by namespace and name.
func (l *Lab) Pods() ([]Pod, error) {
	files, err := filepath.Glob(l.path("pods", "*.json"))
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, f := range files {
		p, err := readPod(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	return pods, nil
}

func readPod(path string) (Pod, error) {
	var p Pod
	data, err := os.ReadFile(path)
	if err != nil {
		return p, err
	}
	if len(data) == 0 {
		return p, fs.ErrNotExist // claimed this very moment
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// RemovePod detaches a pod by CNI DEL and removes its namespace and its object. When DEL fails the
// pod stays, for another try.
func (l *Lab) RemovePod(ctx context.Context, ref string) error {
	p, err := l.Pod(ref)
	if err != nil {
		return err
	}
	n, err := l.Node(p.Node)
	if err != nil {
		return err
	}
	conf, err := n.cni()
	if err != nil {
		return err
	}
	if err := conf.Del(ctx, p); err != nil {
		return fmt.Errorf("remove pod %s from %s: %w", p, p.Node, err)
	}
	if err := removeNamespaces(ctx, []string{filepath.Base(p.NetNS)}, ""); err != nil {
		return err
	}
	if _, err := l.Delete(p.Manifest()); err != nil {
		return err
	}
	return l.forget(p)
}

// NetNSPath is where the network namespace of a pod is, or will be once AddPod has made it.
func NetNSPath(l *Lab, p Pod) string { return netnsPath(l.podNS(p.Namespace, p.Name)) }
