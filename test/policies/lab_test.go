// Package policies sends real packets between pods that policies allow and forbid to talk, and compares each with
// what the independent evaluator says. It needs root and the programs in bin/ (`make build`).
package policies

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/twill-net/twill/test/evaluator"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// up builds a lab of both families.
func up(t *testing.T, nodes int) *lab.Lab {
	t.Helper()
	return labtest.Up(t, lab.Options{Config: lab.Config{IPFamily: "dual"}, Nodes: nodes})
}

// within is lab.Inside for what has a result.
func within[T any](path string, f func() (T, error)) (v T, err error) {
	err = lab.Inside(path, func() error {
		v, err = f()
		return err
	})
	return v, err
}

// clientNearFar attaches three pods: one that policies can select as app=client, one on its node and one on another.
func clientNearFar(t *testing.T, l *lab.Lab) []lab.Pod {
	t.Helper()
	pods, err := l.AddPods(t.Context(), []lab.Pod{
		{Namespace: "shop", Name: "client", Node: "node-1", Labels: map[string]string{"app": "client"}},
		{Namespace: "shop", Name: "near", Node: "node-1"}, {Namespace: "shop", Name: "far", Node: "node-2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// serve echoes on TCP and UDP ports of a pod until the test ends.
func serve(t *testing.T, p lab.Pod, ports ...int) {
	t.Helper()
	for _, port := range ports {
		l, err := within(p.NetNS, func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go labtest.Accept(l, func(c net.Conn) {
			b := make([]byte, 16)
			for {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
			}
		})
		u, err := within(p.NetNS, func() (net.PacketConn, error) { return net.ListenPacket("udp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 16)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from) // one that nobody waits for any more is no loss
			}
		}()
	}
}

// probe is one packet that is asked for.
type probe struct {
	from     lab.Pod
	to       lab.Pod
	address  netip.Addr
	protocol string
	port     int
}

func (p probe) String() string {
	return fmt.Sprintf("%s → %s %s %s:%d", p.from, p.to, p.protocol, p.address, p.port)
}

// answered opens a connection, and tells whether a word came back within the time.
func (p probe) answered(d time.Duration) bool {
	ok, _ := within(p.from.NetNS, func() (bool, error) {
		c, err := net.DialTimeout(strings.ToLower(p.protocol), netip.AddrPortFrom(p.address, uint16(p.port)).String(), d)
		if err != nil {
			return false, nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(d)) // a socket that cannot have one fails below
		if _, err := c.Write([]byte("?")); err != nil {
			return false, nil
		}
		n, err := c.Read(make([]byte, 4))
		return err == nil && n == 1, nil
	})
	return ok
}

// is waits until the probe has the verdict, or says false after a while. Nothing else is waited for: a busy
// machine may take long to answer, and a policy has to be read.
func (p probe) is(want bool) bool {
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		wait := 400 * time.Millisecond
		if want {
			wait = 3 * time.Second
		}
		if p.answered(wait) == want {
			return true
		}
	}
	return false
}

// cluster is what the evaluator is told: the lab's objects and the policies.
func cluster(t *testing.T, l *lab.Lab) evaluator.Cluster {
	t.Helper()
	var c evaluator.Cluster
	files, err := filepath.Glob(filepath.Join(lab.Dir(l.Name), "manifests", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	add := func(data []byte) {
		var head struct{ Kind string }
		if err := yaml.Unmarshal(data, &head); err != nil {
			t.Fatal(err)
		}
		var err error
		switch head.Kind {
		case "Node":
			c.Nodes = append(c.Nodes, corev1.Node{})
			err = yaml.Unmarshal(data, &c.Nodes[len(c.Nodes)-1])
		case "Namespace":
			c.Namespaces = append(c.Namespaces, corev1.Namespace{})
			err = yaml.Unmarshal(data, &c.Namespaces[len(c.Namespaces)-1])
		case "Pod":
			c.Pods = append(c.Pods, corev1.Pod{})
			err = yaml.Unmarshal(data, &c.Pods[len(c.Pods)-1])
		case "NetworkPolicy":
			c.NetworkPolicies = append(c.NetworkPolicies, networkingv1.NetworkPolicy{})
			err = yaml.Unmarshal(data, &c.NetworkPolicies[len(c.NetworkPolicies)-1])
		case "ClusterNetworkPolicy":
			c.ClusterNetworkPolicies = append(c.ClusterNetworkPolicies, evaluator.ClusterNetworkPolicy{})
			err = yaml.Unmarshal(data, &c.ClusterNetworkPolicies[len(c.ClusterNetworkPolicies)-1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		add(data)
	}
	return c
}

// compare sends every probe, as many at once as the machine bears, and returns those that are not as wanted.
func compare(probes []probe, want func(probe) bool) (wrong []probe) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, 48)
	for _, p := range probes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if !p.is(want(p)) {
				mu.Lock()
				wrong = append(wrong, p)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return wrong
}
