package inspect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Dump is what is left of a node without an agent: what plain tools print.
type Dump struct {
	// Flows is the output of `ovs-ofctl -O OpenFlow15 dump-flows`, Groups that of dump-groups; Groups may be empty.
	Flows, Groups string
	// Manifests is a directory with the objects of the cluster, as `kubectl get -o yaml` prints them.
	Manifests string
	// Node is whose dump it is. Empty is the Node whose own addresses the dump hands to the host.
	Node string
}

// Remedies for what a Dump lacks.
const (
	RemedyManifests = "`kubectl get nodes,namespaces,pods,services,endpointslices,networkpolicies -A -o yaml > DIR/cluster.yaml`, and clusternetworkpolicies where there are any"
	remedyGroups    = "--groups FILE, the output of `ovs-ofctl -O OpenFlow15 dump-groups br-twill`"
)

// Recover makes a Subject of a Dump: Nodes, Pods, Services with their EndpointSlices, policies and Namespaces are those
// of the manifests. What is no object of Kubernetes, such as port numbers, MAC addresses, the tunnel, the range of
// ClusterIPs and addresses that linger, is read off the dump. So the names are those of the objects, and `verify` says
// whether the dump is consistent with them. The error says what is broken or missing, and how to get it.
func Recover(d Dump, x ovs.Executor) (*Subject, error) {
	installed, err := readDump(d.Flows)
	if err != nil {
		return nil, err
	}
	objects, err := readObjects(d.Manifests)
	if err != nil {
		return nil, err
	}
	r := recovery{installed: installed, world: &flows.World{Pods: map[flows.Owner][]flows.Attachment{}}}
	admitted, _ := flows.Admit(objects.Nodes())
	node := d.Node
	if node == "" {
		node = r.self(admitted)
	}
	self, ok := admitted[node]
	if !ok {
		return nil, fmt.Errorf("which node is the dump of? None of the %d Nodes in %s has its addresses there; give --as-node", len(admitted), d.Manifests)
	}
	delete(admitted, node)
	r.world.Node, r.world.Peers = self, admitted
	r.tunnel()
	for _, key := range objects.Keys("Pod") {
		if p, ok := objects.Get(key).(*policy.Pod); ok {
			r.attach(p)
		}
	}
	r.services(objects)
	r.policies(objects)
	s := saved(node, "br-twill", r.world, installed, d.Groups, x)
	if err := r.fits(s); err != nil {
		return nil, err
	}
	behind, lacking := s.Behind, r.lacking(objects)
	s.Behind = func() error { return errors.Join(behind(), lacking) }
	return s, nil
}

// readDump reads the text of dump-flows. One that ends within a line was cut short.
func readDump(text string) ([]ovs.Installed, error) {
	if n := strings.Count(text, "\n"); text != "" && !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("the flow dump is cut short: it ends within line %d; have it written again", n+1)
	}
	installed, err := ovs.ParseFlows(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(installed) == 0 {
		return nil, errNoFlow
	}
	if err := numbered(installed); err != nil {
		return nil, err
	}
	return installed, numberedPorts(installed)
}

// namedPort is a port that a dump shows by its name: ovs-ofctl does so on a terminal.
var namedPort = regexp.MustCompile(`(in_port=|output:)("[^"]+"|[A-Za-z][^,]*)`)

// numberedPorts gives ports that a dump names their numbers: those of pods stand in the flow that delivers to them.
func numberedPorts(list []ovs.Installed) error {
	number := map[string]string{"twill-tun": fmt.Sprint(flows.TunnelPort), "twill0": fmt.Sprint(flows.GatewayPort)}
	to := map[netip.Addr]string{}
	for _, f := range list {
		if dst, ok := destination(f); ok && flows.Table(f.Table) == flows.Route {
			if m := chosenPort.FindStringSubmatch(f.Actions); m != nil {
				n, _ := strconv.ParseUint(m[1], 0, 32) // hexadecimal digits
				to[dst] = fmt.Sprint(n)
			}
		}
	}
	for _, f := range list {
		m := flows.ParseMatch(f.Text)
		name, ok := m.Get("in_port")
		if src := sourceOf(m); ok && flows.Table(f.Table) == flows.Guard && to[src] != "" {
			number[strings.Trim(name, `"`)] = to[src]
		}
	}
	for i := range list {
		var unknown string
		replace := func(text string) string {
			m := namedPort.FindStringSubmatch(text)
			name := strings.Trim(m[2], `"`)
			switch n, ok := number[name]; {
			case ok:
				return m[1] + n
			case name != "LOCAL" && !strings.HasPrefix(name, "NXM_"):
				unknown = name
			}
			return text
		}
		list[i].Text = namedPort.ReplaceAllStringFunc(list[i].Text, replace)
		list[i].Actions = namedPort.ReplaceAllStringFunc(list[i].Actions, replace)
		if unknown != "" {
			return fmt.Errorf("the flow dump names a port %q, whose number it does not tell: have it written with --no-names", unknown)
		}
	}
	return nil
}

// chosenPort is where route chooses a port.
var chosenPort = regexp.MustCompile(`set_field:(0x[0-9a-f]+)->reg1\b`)

// sourceOf is the address that a match wants as source; not valid if it wants none.
func sourceOf(m flows.Match) netip.Addr {
	for _, field := range []string{"nw_src", "ipv6_src"} {
		if v, ok := m.Get(field); ok {
			if a, err := netip.ParseAddr(v); err == nil {
				return a
			}
		}
	}
	return netip.Addr{}
}

// readObjects reads a directory of manifests as an agent does.
func readObjects(dir string) (*source.Manifests, error) {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	m, err := source.ReadDirectory(dir, silent)
	if err != nil {
		return nil, err
	}
	if len(m.Nodes()) == 0 {
		var reasons []error
		for _, p := range m.Problems() {
			reasons = append(reasons, errors.New(p.String()))
		}
		return nil, errors.Join(append([]error{fmt.Errorf("no Node is in the manifests in %s, so nothing can be named: %s", dir, RemedyManifests)}, reasons...)...)
	}
	return m, nil
}

// fits refuses a dump that lacks much of what every bridge has.
func (r recovery) fits(s *Subject) error {
	there := map[uint64]bool{}
	for _, f := range r.installed {
		there[f.Cookie] = true
	}
	wanted, found := 0, 0
	s.View(func(d *flows.Desired, _ *flows.World) {
		for _, f := range d.Of(flows.Pipeline) {
			wanted++
			if there[f.Cookie] {
				found++
			}
		}
	})
	if 4*found < 3*wanted {
		return fmt.Errorf("the flow dump has %d of the %d flows that every bridge of this version has: it is incomplete, of another bridge, or of an agent of another version, whose twill has to be used then", found, wanted)
	}
	return nil
}

// lacking names what the dump speaks of and the manifests do not have, and what of them cannot be used.
func (r recovery) lacking(objects *source.Manifests) error {
	var out []error
	has := func(kinds ...string) bool {
		return slices.ContainsFunc(kinds, func(k string) bool { return len(objects.Keys(k)) > 0 })
	}
	serves := func(f ovs.Installed) bool { return strings.Contains(f.Actions, "group:") }
	isolates := func(f ovs.Installed) bool {
		return strings.Contains(f.Text, "conj_id=") || flows.Table(f.Table) == flows.IngressPolicy && strings.Contains(f.Text, "reg1=")
	}
	if !has("Service") && slices.ContainsFunc(r.installed, serves) {
		out = append(out, errors.New("the dump has flows of Services, and the manifests have no Service: "+RemedyManifests))
	}
	if !has("NetworkPolicy", "ClusterNetworkPolicy") && slices.ContainsFunc(r.installed, isolates) {
		out = append(out, errors.New("the dump has flows of policies, and the manifests have no policy: "+RemedyManifests))
	}
	if has("NetworkPolicy", "ClusterNetworkPolicy") && !has("Namespace") {
		out = append(out, errors.New("the manifests have policies and no Namespace, whose labels policies may ask for: "+RemedyManifests))
	}
	for _, p := range objects.Problems() {
		out = append(out, errors.New(p.String()))
	}
	return errors.Join(out...)
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

// attach finds the port and the MAC of a pod by the guard's flows: they are its own by their cookie.
func (r recovery) attach(p *policy.Pod) {
	a := flows.Attachment{Namespace: p.Namespace, Pod: p.Name, UID: p.UID, IfName: "eth0", MTU: r.world.MTU}
	owner := a.Owner()
	for _, f := range r.installed {
		if flows.Table(f.Table) != flows.Guard || !owner.Owns(f.Cookie) {
			continue
		}
		m := flows.ParseMatch(f.Text)
		addr := sourceOf(m)
		if !addr.IsValid() {
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
	}
	if a.OFPort != 0 {
		slices.SortFunc(a.Addresses, func(x, y netip.Addr) int { return x.BitLen() - y.BitLen() })
		a.Port = fmt.Sprintf("p%d", a.OFPort)
		r.world.Pods[owner] = append(r.world.Pods[owner], a)
	}
}

// services joins Services and EndpointSlices, if the dump is of a bridge that serves them.
func (r recovery) services(objects *source.Manifests) {
	var cidrs []netip.Prefix
	on := false
	answers := map[netip.Addr]bool{}
	for _, f := range r.installed {
		on = on || flows.Table(f.Table) == flows.Conntrack
		if round, ok := flows.RoundOf(flows.Table(f.Table), f.Actions); ok {
			r.world.Round = round
		}
		m := flows.ParseMatch(f.Text)
		for _, field := range []string{"nw_dst", "ipv6_dst"} {
			v, _ := m.Get(field)
			if p, err := netip.ParsePrefix(v); err == nil && flows.Table(f.Table) == flows.Conntrack && strings.HasPrefix(f.Actions, "goto_table:") {
				cidrs = append(cidrs, p)
			}
		}
		for _, field := range []string{"nw_src", "ipv6_src"} {
			v, _ := m.Get(field)
			if a, err := netip.ParseAddr(v); err == nil && flows.Table(f.Table) == flows.Reply {
				answers[a] = true
			}
		}
	}
	if !on {
		return
	}
	slices.SortFunc(cidrs, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	r.world.Services = source.NewJoiner(cidrs).Join(objects.Services())
	r.world.Own = r.own()
	r.world.Lingering = map[netip.Addr]bool{}
	for a := range answers {
		if !r.world.Services.Leads(a) && !r.world.Services.Serves(a) {
			r.world.Lingering[a] = true
		}
	}
}

// own are the addresses of Services that are the host's own: they have a stand-in, in a flow that is known by its cookie.
func (r recovery) own() []netip.Addr {
	standIns := slices.DeleteFunc(slices.Clone(r.installed), func(f ovs.Installed) bool {
		to, ok := destination(f)
		return !ok || flows.Table(f.Table) != flows.Conntrack || !flows.OwnRange(to.Is4()).Contains(to)
	})
	var out []netip.Addr
	for _, p := range r.world.Services.All() {
		for _, a := range slices.Concat(p.LoadBalancer, p.External) {
			if slices.ContainsFunc(standIns, func(f ovs.Installed) bool { return flows.AddressOwner(a).Owns(f.Cookie) }) {
				out = append(out, a)
			}
		}
	}
	return r.world.Services.Own(out)
}

// policies resolves policies for the pods of the dump.
func (r recovery) policies(objects *source.Manifests) {
	ix := policy.NewIndex()
	for _, kind := range source.PolicyKinds() {
		for _, key := range objects.Keys(kind) {
			source.Tell(ix, key, objects.Get(key))
		}
	}
	local := map[string]policy.Local{}
	for _, list := range r.world.Pods {
		for _, a := range list {
			local[a.Namespace+"/"+a.Pod] = policy.Local{Namespace: a.Namespace, Pod: a.Pod, UID: a.UID, Addresses: a.Addresses}
		}
	}
	ix.SetLocal(local)
	r.world.Policy = ix.Policy()
}
