package flows_test

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/test/bridgetest"
)

// scenario is one case of testdata: Kubernetes Nodes, the pods of one of them, and settings.
//
//	-- nodes.yaml --   manifests, as kubectl prints them
//	-- services.yaml --  Services and EndpointSlices; without it, another proxy cares for them
//	-- settings --     node NAME | tunnel TYPE PORT | vni N | local ADDRESS | mtu BYTES | cluster CIDR... | services CIDR... | datapath system | host ADDRESS...
//	-- pods --         one line each: OFPORT NAMESPACE/NAME IFNAME MAC ADDRESS,... MTU
//	-- want --         what comes out; written by -update
type scenario struct {
	name    string
	path    string
	archive *txtar.Archive
	world   *flows.World
	refused []flows.Refusal
}

// scenarios are all cases of testdata, by name.
func scenarios(t testing.TB) []scenario {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	var out []scenario
	for _, path := range paths {
		out = append(out, readScenario(t, path))
	}
	return out
}

func readScenario(t testing.TB, path string) scenario {
	t.Helper()
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := scenario{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, archive: a, world: &flows.World{}}
	files := map[string]string{}
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	name, serviceCIDRs := readSettings(t, files["settings"], s.world)
	objects := readManifests(t, files["nodes.yaml"]+"\n---\n"+files["services.yaml"])
	admitted, refused := flows.Admit(objects.Nodes())
	if files["services.yaml"] != "" {
		s.world.Services = source.NewJoiner(serviceCIDRs).Join(objects.Services())
		s.world.Own = s.world.Services.Own(s.world.Own)
	}
	self, ok := admitted[name]
	if !ok {
		t.Fatalf("%s: no Node %q", path, name)
	}
	delete(admitted, name)
	s.world.Node, s.world.Peers, s.refused = self, admitted, refused
	s.world.Pods = readPods(t, files["pods"])
	s.world.Policy = policyOf(objects, s.world.Pods)
	return s
}

// policyOf resolves the policies of manifests for these pods.
func policyOf(objects *source.Manifests, pods map[flows.Owner][]flows.Attachment) *flows.Policy {
	ix := policy.NewIndex()
	for _, kind := range source.PolicyKinds() {
		for _, key := range objects.Keys(kind) {
			source.Tell(ix, key, objects.Get(key))
		}
	}
	local := map[string]policy.Local{}
	for _, list := range pods {
		for _, a := range list {
			local[a.Namespace+"/"+a.Pod] = policy.Local{Namespace: a.Namespace, Pod: a.Pod, UID: a.UID}
		}
	}
	ix.SetLocal(local)
	return ix.Policy()
}

// readManifests decodes manifests as the agent does.
func readManifests(t testing.TB, manifests string) *source.Manifests {
	t.Helper()
	m := bridgetest.Manifests(t, manifests)
	if p := m.Problems(); len(p) > 0 {
		t.Logf("manifests: %v", p)
	}
	return m
}

// readSettings fills the World with what is no object of Kubernetes and returns this node's name.
func readSettings(t testing.TB, text string, w *flows.World) (node string, services []netip.Prefix) {
	t.Helper()
	w.Tunnel = flows.Tunnel{Type: flows.Geneve, Port: 6081, VNI: 7}
	w.MTU = 1450
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		var err error
		switch words[0] {
		case "node":
			node = words[1]
		case "tunnel":
			w.Tunnel.Type = flows.TunnelType(words[1])
			w.Tunnel.Port = uint16(number(t, words[2]))
		case "vni":
			w.Tunnel.VNI = number(t, words[1])
		case "local":
			w.Tunnel.Local, err = netip.ParseAddr(words[1])
		case "mtu":
			w.MTU = int(number(t, words[1]))
		case "services":
			for _, c := range words[1:] {
				services = append(services, netip.MustParsePrefix(c))
			}
		case "cluster":
			for _, c := range words[1:] {
				w.ClusterCIDRs = append(w.ClusterCIDRs, netip.MustParsePrefix(c))
			}
		case "host":
			for _, a := range words[1:] {
				w.Own = append(w.Own, netip.MustParseAddr(a))
			}
		case "datapath":
			w.HostAnswersND = words[1] == "system"
		default:
			err = fmt.Errorf("unknown setting %q", line)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return node, services
}

func readPods(t testing.TB, text string) map[flows.Owner][]flows.Attachment {
	t.Helper()
	pods := map[flows.Owner][]flows.Attachment{}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) != 6 {
			t.Fatalf("pod %q: want OFPORT NAMESPACE/NAME IFNAME MAC ADDRESS,... MTU", line)
		}
		a := flows.Attachment{OFPort: number(t, words[0]), IfName: words[2], MTU: int(number(t, words[5]))}
		a.Namespace, a.Pod, _ = strings.Cut(words[1], "/")
		a.Port = fmt.Sprintf("p%d", a.OFPort)
		var err error
		if a.MAC, err = net.ParseMAC(words[3]); err != nil {
			t.Fatal(err)
		}
		for _, x := range strings.Split(words[4], ",") {
			a.Addresses = append(a.Addresses, netip.MustParseAddr(x))
		}
		pods[a.Owner()] = append(pods[a.Owner()], a)
	}
	return pods
}

func number(t testing.TB, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// compile is what every owner of a World asks for, and what does not compile.
func compile(w *flows.World) (map[flows.Owner][]flows.Flow, error) {
	wanted := map[flows.Owner][]flows.Flow{}
	var failed error
	for _, o := range w.Owners() {
		fs, err := flows.Compile(w, o)
		failed = cmp.Or(failed, err)
		wanted[o] = fs
	}
	return wanted, failed
}

// desired is the whole of a World.
func desired(t testing.TB, w *flows.World) *flows.Desired {
	t.Helper()
	wanted, _ := compile(w)
	d := flows.NewDesired()
	if _, err := d.Replace(wanted); err != nil {
		t.Fatal(err)
	}
	return d
}

// all are the flows that each case compiles to, without the same flow twice.
func all(t testing.TB) []flows.Flow {
	t.Helper()
	once := map[string]flows.Flow{}
	for _, s := range scenarios(t) {
		for _, f := range desired(t, s.world).Flows() {
			once[f.String()] = f
		}
	}
	return slices.SortedFunc(maps.Values(once), func(a, b flows.Flow) int { return strings.Compare(a.Spec(), b.Spec()) })
}
