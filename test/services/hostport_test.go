package services

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twill-net/twill/agent/host"
	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// portmap is the reference plugin for hostPort, of the release that go.mod names.
const portmap = "github.com/containernetworking/plugins/plugins/meta/portmap"

// TestAHostPortIsServedByTheChainedPlugin: the agent chains portmap because it stands among the plugins; the runtime asks
// it for a port of the node; real packets from everywhere reach the pod, and nobody does once the pod is gone.
func TestAHostPortIsServedByTheChainedPlugin(t *testing.T) { hostPort(t) }

// TestAHostPortIsServedWhereAnotherProxyServesServices: the same, without any of the tables for Services.
func TestAHostPortIsServedWhereAnotherProxyServesServices(t *testing.T) {
	t.Setenv("TWILL_SERVICE_PROXY", "off")
	hostPort(t)
}

func hostPort(t *testing.T) {
	plugin := filepath.Join(t.TempDir(), "portmap")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", plugin, portmap)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	l := labtest.Up(t, lab.Options{Config: lab.Config{NoAgent: true}, Nodes: 2})
	for _, node := range []string{"node-1", "node-2"} {
		bin := filepath.Join(lab.Dir(l.Name), "nodes", node, "cni", "bin")
		if out, err := exec.CommandContext(t.Context(), "install", "-D", "-t", bin, plugin).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := l.StartAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	server, err := l.AddPod(t.Context(), lab.Pod{Name: "server", Node: "node-1", Labels: map[string]string{"app": "server"}, HostPorts: []lab.HostPort{
		{HostPort: 8081, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 8081, ContainerPort: 8080, Protocol: "udp"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server.NetNS, "server", 8080)
	pods := addPods(t, l, "near@node-1", "far@node-2")
	n1 := labtest.Node(t, l, "node-1")
	clients := map[string]string{
		"the host outside": labtest.OutsideNS(l), "a process of another node": labtest.NodeNS(t, l, "node-2"), "a process of the node": labtest.NodeNS(t, l, "node-1"),
		"a pod on another node": pods["far"].NetNS, "a pod on the node": pods["near"].NetNS, "the pod itself": server.NetNS,
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		at := netip.AddrPortFrom(labtest.Of(family, n1.Addresses()), 8081)
		labtest.Eventually(t, 5*patience, "the first answer", func() error { _, err := talk(labtest.OutsideNS(l), "tcp", at); return err })
		translated := map[string]string{"IPv4": host.TranslatedIPv4, "IPv6": host.TranslatedIPv6}[family]
		for who, ns := range clients {
			for _, network := range []string{"tcp", "udp"} {
				a, err := talk(ns, network, at)
				if err != nil {
					t.Errorf("%s, %s to %s: %v", who, network, at, err)
					continue
				}
				// Who is outside keeps its address. Others of the cluster do not, and are taken for nobody of it.
				switch seen := a.seen.Addr(); who {
				case "the host outside":
					if others := slices.Concat(n1.Addresses(), pods["far"].Addresses, pods["near"].Addresses, server.Addresses); slices.Contains(others, seen) ||
						inside(n1.PodCIDRs(), seen) || seen.String() == translated {
						t.Errorf("%s, %s to %s: the pod sees %s", who, network, at, seen)
					}
				case "a process of the node":
					if want := labtest.Of(family, n1.Addresses()); seen != want {
						t.Errorf("%s, %s to %s: the pod sees %s, want %s", who, network, at, seen, want)
					}
				case "the pod itself": // portmap's own affair
				default:
					if seen.String() != translated {
						t.Errorf("%s, %s to %s: the pod sees %s, want %s", who, network, at, seen, translated)
					}
				}
			}
		}
	}
	// A policy that lets nobody in does so by way of the node, too: it takes the node's own processes alone for the node.
	allow := labtest.Apply(t, l, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut, namespace: default}\nspec: {podSelector: {matchLabels: {app: server}}}\n")
	for _, family := range []string{"IPv4", "IPv6"} {
		at := netip.AddrPortFrom(labtest.Of(family, n1.Addresses()), 8081)
		for who, ns := range clients {
			open := who == "a process of the node" || who == "the pod itself"
			labtest.Eventually(t, 5*patience, who+" under a policy, to "+at.String(), func() error {
				if a, err := talkWithin(ns, "tcp", at, shortly); (err == nil) != open {
					return fmt.Errorf("open is %v, want %v: %+v %v", err == nil, open, a, err)
				}
				return nil
			})
		}
	}
	allow()
	if err := l.RemovePod(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		at := netip.AddrPortFrom(labtest.Of(family, n1.Addresses()), 8081)
		if a, err := talkWithin(labtest.OutsideNS(l), "tcp", at, shortly); err == nil || !refused(err) {
			t.Errorf("after the pod is gone, %s: %v, %v; want refused", at, a, err)
		}
	}
}

func inside(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}
