package inspect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Recover makes a Subject of the text of dump-flows and a directory of manifests (Nodes and Pods, as kubectl prints
// them). What is no object of Kubernetes, such as port numbers, MAC addresses and the tunnel, is read off the dump:
// so the names are those of the objects, and `verify` says whether the dump is consistent with them. node may be
// empty: then it is the Node whose own addresses the dump hands to the host.
func Recover(ctx context.Context, dump, manifests, node string, x ovs.Executor) (*Subject, error) {
	installed, err := ovs.ParseFlows(strings.NewReader(dump))
	if err != nil {
		return nil, err
	}
	if err := numbered(installed); err != nil {
		return nil, err
	}
	nodes, err := readNodes(ctx, manifests)
	if err != nil {
		return nil, err
	}
	pods, err := readPods(manifests)
	if err != nil {
		return nil, err
	}
	r := recovery{installed: installed, world: &flows.World{Pods: map[flows.Owner][]flows.Attachment{}}}
	admitted, _ := flows.Admit(nodes)
	if node == "" {
		node = r.self(admitted)
	}
	self, ok := admitted[node]
	if !ok {
		return nil, fmt.Errorf("which node is the dump of? None of the %d Nodes in %s has its addresses there; give --as-node", len(admitted), manifests)
	}
	delete(admitted, node)
	r.world.Node, r.world.Peers = self, admitted
	r.tunnel()
	for _, p := range pods {
		r.attach(p)
	}
	return Saved(node, "br-twill", r.world, dump, "", x)
}

// recovery reads off a dump what no manifest says.
type recovery struct {
	installed []ovs.Installed
	world     *flows.World
}

// self is the Node for whose addresses route sends to the host.
func (r recovery) self(nodes map[string]flows.Node) string {
	host := fmt.Sprintf("%#x->reg1", flows.GatewayPort)
	for _, f := range r.installed {
		dst, ok := destination(f)
		if !ok || flows.Table(f.Table) != flows.Route || !strings.Contains(f.Actions, host) {
			continue
		}
		for name, n := range nodes {
			if contains(n.Addresses, dst) {
				return name
			}
		}
	}
	return ""
}

func destination(f ovs.Installed) (netip.Addr, bool) {
	m := flows.ParseMatch(f.Text)
	for _, field := range []string{"nw_dst", "ipv6_dst"} {
		if v, ok := m.Get(field); ok {
			a, err := netip.ParseAddr(v)
			return a, err == nil
		}
	}
	return netip.Addr{}, false
}

// tunnel fills what the flows of the pipeline and of peers say of the tunnel and the cluster's ranges.
func (r recovery) tunnel() {
	w := r.world
	w.Tunnel = flows.Tunnel{Type: flows.Geneve}
	family := true
	w.HostAnswersND = !slices.ContainsFunc(r.installed, func(f ovs.Installed) bool { return strings.Contains(f.Actions, "->nd_tll") })
	for _, f := range r.installed {
		m := flows.ParseMatch(f.Text)
		if v, ok := m.Get("tun_id"); ok {
			if n, err := strconv.ParseUint(v, 0, 24); err == nil {
				w.Tunnel.VNI = uint32(n)
			}
			_, family = m.Get("tun_src")
		}
		if v, ok := m.Get("tp_dst"); ok && flows.Table(f.Table) == flows.ToNode {
			if n, err := strconv.ParseUint(v, 0, 16); err == nil {
				w.Tunnel.Port = uint16(n)
			}
		}
		if flows.Table(f.Table) == flows.Route && f.Actions == "drop" {
			r.clusterRange(m)
		}
		if _, size, ok := strings.Cut(f.Actions, "check_pkt_larger("); ok {
			digits, _, _ := strings.Cut(size, ")")
			if n, err := strconv.Atoi(digits); err == nil {
				w.MTU = n - 14 // the Ethernet header, see flows
			}
		}
	}
	slices.SortFunc(w.ClusterCIDRs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	for _, a := range w.Node.Addresses {
		if a.Is4() == family && !w.Tunnel.Local.IsValid() {
			w.Tunnel.Local = a
		}
	}
}

// clusterRange takes a range whose rest route drops, if it is no podCIDR of ours.
func (r recovery) clusterRange(m flows.Match) {
	for _, field := range []string{"nw_dst", "ipv6_dst"} {
		v, ok := m.Get(field)
		p, err := netip.ParsePrefix(v)
		if ok && err == nil && !p.Addr().IsMulticast() && !slices.Contains(r.world.Node.PodCIDRs, p) {
			r.world.ClusterCIDRs = append(r.world.ClusterCIDRs, p)
		}
	}

}

// attach finds the port and the MAC of a pod by the guard's flow for its address.
func (r recovery) attach(p pod) {
	a := flows.Attachment{Namespace: p.Metadata.Namespace, Pod: p.Metadata.Name, IfName: "eth0", MTU: r.world.MTU}
	for _, ip := range p.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			continue
		}
		for _, f := range r.installed {
			m := flows.ParseMatch(f.Text)
			src, ok := m.Get("nw_src")
			if !ok {
				src, _ = m.Get("ipv6_src")
			}
			if flows.Table(f.Table) != flows.Guard || src != addr.String() {
				continue
			}
			port, _ := m.Get("in_port")
			mac, _ := m.Get("dl_src")
			n, err := strconv.ParseUint(port, 10, 32)
			hw, macErr := net.ParseMAC(mac)
			if err != nil || macErr != nil {
				continue
			}
			if strings.Contains(f.Actions, "check_pkt_larger(") {
				a.MTU = r.world.MTU + 1 // larger than today's, by how much no flow says
			}
			a.OFPort, a.MAC = uint32(n), hw
			a.Addresses = append(a.Addresses, addr)
			break
		}
	}
	if a.OFPort != 0 {
		a.Port = fmt.Sprintf("p%d", a.OFPort)
		r.world.Pods[a.Owner()] = append(r.world.Pods[a.Owner()], a)
	}
}

// readNodes reads the Nodes of a directory as an agent does.
func readNodes(ctx context.Context, dir string) ([]flows.Node, error) {
	log := logrus.New()
	log.SetOutput(discard{})
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	synced := make(chan struct{}, 1)
	var m *source.Manifests
	m, err := source.NewManifests(source.ManifestsConfig{Dir: dir, Log: log, OnChange: func(k source.Key) {
		if k == (source.Key{}) {
			select {
			case synced <- struct{}{}:
			default:
			}
		}
	}})
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	select {
	case <-synced:
		cancel()
		<-ended
		return m.Nodes(), nil
	case err := <-ended:
		var reasons []error
		for _, p := range m.Problems() {
			reasons = append(reasons, errors.New(p.String()))
		}
		return nil, fmt.Errorf("the manifests in %s: %w", dir, errors.Join(append(reasons, err)...))
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// pod is what of a Pod's manifest is needed here.
type pod struct {
	Kind     string `json:"kind"`
	Items    []pod  `json:"items"`
	Metadata struct{ Namespace, Name string }
	Status   struct {
		PodIPs []struct {
			IP string `json:"ip"`
		} `json:"podIPs"`
	}
}

// readPods reads the Pods of a directory, also those within lists.
func readPods(dir string) ([]pod, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []pod
	var take func(p pod)
	take = func(p pod) {
		for _, item := range p.Items {
			if item.Kind == "" && p.Kind == "PodList" {
				item.Kind = "Pod"
			}
			take(item)
		}
		if p.Kind == "Pod" {
			if p.Metadata.Namespace == "" {
				p.Metadata.Namespace = "default"
			}
			out = append(out, p)
		}
	}
	for _, e := range entries {
		if !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		for _, doc := range strings.Split("\n"+string(text), "\n---") {
			var p pod
			if yaml.Unmarshal([]byte(doc), &p) == nil { // what is no object was named by readNodes
				take(p)
			}
		}
	}
	return out, nil
}
