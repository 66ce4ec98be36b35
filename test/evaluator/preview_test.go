package evaluator_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/preview"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/evaluator"
)

// altered is a cluster with another policy, with one changed, or with one less; and the request for it.
func (d dice) altered(t testing.TB, c evaluator.Cluster) (evaluator.Cluster, preview.Request) {
	r := preview.Request{Namespace: "default"}
	after := c
	file := func(x any) {
		text, err := yaml.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		r.Files = append(r.Files, preview.File{Name: "new.yaml", Text: string(text)})
	}
	n, m := len(c.NetworkPolicies), len(c.ClusterNetworkPolicies)
	switch kind := d.IntN(5); {
	case kind == 0 && n > 0:
		i := d.IntN(n)
		r.Delete = append(r.Delete, "networkpolicy/"+c.NetworkPolicies[i].Namespace+"/"+c.NetworkPolicies[i].Name)
		after.NetworkPolicies = slices.Delete(slices.Clone(c.NetworkPolicies), i, i+1)
	case kind == 1 && m > 0:
		i := d.IntN(m)
		r.Delete = append(r.Delete, "clusternetworkpolicy/"+c.ClusterNetworkPolicies[i].Name)
		after.ClusterNetworkPolicies = slices.Delete(slices.Clone(c.ClusterNetworkPolicies), i, i+1)
	case kind == 2:
		p := d.clusterPolicy(d.IntN(m + 1))
		after.ClusterNetworkPolicies = append(slices.DeleteFunc(slices.Clone(c.ClusterNetworkPolicies), func(x evaluator.ClusterNetworkPolicy) bool { return x.Name == p.Name }), p)
		file(p)
	default:
		p := d.networkPolicy(d.IntN(n + 1))
		i := slices.IndexFunc(c.NetworkPolicies, func(x networkingv1.NetworkPolicy) bool { return x.Name == p.Name })
		if i >= 0 {
			p.Namespace = c.NetworkPolicies[i].Namespace
			after.NetworkPolicies = slices.Delete(slices.Clone(c.NetworkPolicies), i, i+1)
		}
		after.NetworkPolicies = append(slices.Clone(after.NetworkPolicies), p)
		file(p)
	}
	return after, r
}

// TestAPreviewSaysWhatTheDocumentationSays compares previews of random changes of random clusters with what the
// evaluator says before and after, for all ends and ports that it knows.
func TestAPreviewSaysWhatTheDocumentationSays(t *testing.T) {
	changed, same := 0, 0
	for s := range seeds(t) {
		d := roll(uint64(s))
		c := d.cluster()
		after, r := d.altered(t, c)
		var o preview.Objects
		for _, v := range decode(t, c) {
			switch v := v.(type) {
			case *policy.Pod:
				o.Pods = append(o.Pods, v)
			case *policy.Namespace:
				o.Namespaces = append(o.Namespaces, v)
			case *policy.Policy:
				o.Policies = append(o.Policies, v)
			case flows.Node:
				o.Nodes = append(o.Nodes, v)
			}
		}
		got, err := preview.Preview(t.Context(), o, r)
		if err != nil {
			t.Fatalf("seed %d: %v", s, err)
		}
		verdict := func(c evaluator.Cluster, p evaluator.Packet) bool {
			ok, _ := c.Egress(p)
			if ok {
				ok, _ = c.Ingress(p)
			}
			return ok
		}
		for _, v4 := range []bool{true, false} {
			all := ends(c, world(c), v4)
			for _, from := range all {
				for _, to := range all {
					if from == to || from.pod == nil && to.pod == nil || to.pod != nil && from.name == "node "+to.pod.Spec.NodeName {
						continue
					}
					for _, protocol := range []corev1.Protocol{"TCP", "UDP", "SCTP", "ICMP"} {
						for _, port := range []int32{53, 78, 79, 80, 81, 82, 443, 444, 5353, 8080, 8081, 65535} {
							p := evaluator.Packet{Source: from.address, Destination: to.address, Protocol: protocol, Port: port}
							before, now := verdict(c, p), verdict(after, p)
							said := saidOf(got, from, to, p, v4)
							want := ""
							if before != now {
								want = fmt.Sprint(before, "→", now)
								changed++
							} else {
								same++
							}
							if said != want {
								t.Fatalf("seed %d: %s → %s %s/%d (IPv4 %v): the preview says %q, the documentation %q\n%+v\n%v", s, from.name, to.name, protocol, port, v4, said, want, r, got.Changes)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d verdicts changed, %d stayed", changed, same)
	if changed == 0 || same == 0 {
		t.Error("one of the answers never came")
	}
}

// saidOf is what a preview says of a packet; empty for no change.
func saidOf(r *preview.Result, from, to end, p evaluator.Packet, v4 bool) string {
	said := ""
	for _, c := range r.Changes {
		if c.Family != "" && (c.Family == "IPv4") != v4 || !lists(c.Sources, from) || !lists(c.Destinations, to) || !carries(c.Ports, p) {
			continue
		}
		said += fmt.Sprint(c.Before.Allowed, "→", c.After.Allowed)
	}
	return said
}

func lists(names []string, e end) bool {
	for _, n := range names {
		if e.pod != nil && n == e.pod.Namespace+"/"+e.pod.Name || strings.HasPrefix(n, "node/") && e.name == strings.Replace(n, "/", " ", 1) {
			return true
		}
		whole, except, _ := strings.Cut(n, " except ")
		c, err := netip.ParsePrefix(whole)
		if e.pod != nil || strings.HasPrefix(e.name, "node") || err != nil || !c.Contains(e.address) {
			continue
		}
		if !slices.ContainsFunc(strings.Fields(except), func(x string) bool { return netip.MustParsePrefix(x).Contains(e.address) }) {
			return true
		}
	}
	return false
}

func carries(ports []string, p evaluator.Packet) bool {
	for _, x := range ports {
		protocol, numbers, some := strings.Cut(x, "/")
		if protocol != strings.ToLower(string(p.Protocol)) && (protocol != "other" || p.Protocol != "ICMP") {
			continue
		}
		first, last, many := strings.Cut(numbers, "-")
		if !many {
			last = first
		}
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(last)
		if !some || int(p.Port) >= a && int(p.Port) <= b {
			return true
		}
	}
	return false
}
