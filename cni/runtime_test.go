package cni

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// cniRuntime is a container runtime: libcni, and a directory with this binary under the plugins' names.
func cniRuntime(t *testing.T) *libcni.CNIConfig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{PluginType, "first", "second"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
}

func network(t *testing.T, cniVersion, socket string, before, after []string) *libcni.NetworkConfigList {
	t.Helper()
	var plugins []string
	for _, name := range before {
		plugins = append(plugins, `{"type":"`+name+`"}`)
	}
	plugins = append(plugins, `{"type":"twill-cni","socket":"`+socket+`"}`)
	for _, name := range after {
		plugins = append(plugins, `{"type":"`+name+`"}`)
	}
	list, err := libcni.NetworkConfFromBytes([]byte(
		`{"cniVersion":"` + cniVersion + `","name":"twill","plugins":[` + strings.Join(plugins, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func attachment(netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: "sandbox-1", NetNS: netns, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"},
			{"K8S_POD_INFRA_CONTAINER_ID", "sandbox-1"}, {"K8S_POD_UID", "1234"}},
	}
}

func TestARuntimeAttachesChecksAndDetachesInEveryVersion(t *testing.T) {
	for _, cniVersion := range supported().SupportedVersions() {
		t.Run(cniVersion, func(t *testing.T) {
			netns, inode := sandbox(t)
			fake := &fakeAgent{}
			a := serve(t, ServerConfig{Handler: fake})
			runtime, list, rt := cniRuntime(t), network(t, cniVersion, a.socket, nil, nil), attachment(netns)

			result, err := runtime.AddNetworkList(t.Context(), list, rt)
			if err != nil {
				t.Fatal(err)
			}
			if result.Version() != cniVersion {
				t.Errorf("result of version %s", result.Version())
			}
			if diff := cmp.Diff(wantResult(t, cniVersion, netns), asJSON(t, result)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			req := fake.last(t)
			if want := (PodRef{"shop", "web-0", "1234", "sandbox-1"}); req.Pod != want {
				t.Errorf("pod: got %+v, want %+v", req.Pod, want)
			}
			if req.Config.Name != "twill" || req.Config.CNIVersion != cniVersion || req.NetNS != netns || req.IfName != "eth0" {
				t.Errorf("request: %+v", req)
			}
			if !slices.Equal(fake.namespaces(), []uint64{inode}) {
				t.Errorf("the agent got the files %v, want the network namespace %d", fake.inodes, inode)
			}

			err = runtime.CheckNetworkList(t.Context(), list, rt)
			if cniVersion == "0.3.1" {
				if !errors.Is(err, libcni.ErrorCheckNotSupp) {
					t.Errorf("CHECK: %v", err)
				}
			} else if err != nil {
				t.Errorf("CHECK: %v", err)
			} else if fake.last(t).Command != CommandCheck || !slices.Equal(fake.namespaces(), []uint64{inode, inode}) {
				t.Errorf("CHECK: the agent got %+v with %v", fake.last(t), fake.namespaces())
			}

			for range 2 {
				if err := runtime.DelNetworkList(t.Context(), list, rt); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			if req := fake.last(t); req.Command != CommandDel || req.ContainerID != "sandbox-1" {
				t.Errorf("DEL: the agent got %+v", req)
			}

			info, err := runtime.GetVersionInfo(t.Context(), PluginType)
			if err != nil || !slices.Equal(info.SupportedVersions(), []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}) {
				t.Errorf("VERSION: %v, %v", info, err)
			}
		})
	}
}

func TestGCTellsTheAgentWhatIsStillValid(t *testing.T) {
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	runtime, list := cniRuntime(t), network(t, "1.1.0", a.socket, nil, nil)

	valid := []types.GCAttachment{{ContainerID: "sandbox-1", IfName: "eth0"}, {ContainerID: "sandbox-2", IfName: "net1"}}
	if err := runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Fatal(err)
	}
	want := []Attachment{{"sandbox-1", "eth0"}, {"sandbox-2", "net1"}}
	if got := fake.last(t); got.Command != CommandGC || !slices.Equal(got.ValidAttachments, want) {
		t.Errorf("GC: the agent got %+v", got)
	}

	if err := runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{}); err != nil {
		t.Fatal(err)
	}
	if got := fake.last(t); len(got.ValidAttachments) != 0 {
		t.Errorf("GC with none valid: the agent got %+v", got)
	}

	asked := fake.count()
	err := runtime.GCNetworkList(t.Context(), list, nil)
	if err == nil || !strings.Contains(err.Error(), "cni.dev/valid-attachments is missing") || fake.count() != asked {
		t.Errorf("GC without a list: %v", err)
	}
}

func TestStatusIsTheAgentsOwn(t *testing.T) {
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	runtime, list := cniRuntime(t), network(t, "1.1.0", a.socket, nil, nil)
	if err := runtime.GetStatusNetworkList(t.Context(), list); err != nil {
		t.Errorf("STATUS of a ready agent: %v", err)
	}
	a.stop()
	if err := a.wait(); err != nil {
		t.Fatal(err)
	}
	var e *types.Error
	if err := runtime.GetStatusNetworkList(t.Context(), list); !errors.As(err, &e) || e.Code != ErrNotAvailable {
		t.Errorf("STATUS without an agent: %v", err)
	}

	limited := serve(t, ServerConfig{Handler: (&fakeAgent{}).fail(Errorf(ErrLimited, "ovs-vswitchd is not running"))})
	list = network(t, "1.1.0", limited.socket, nil, nil)
	if err := runtime.GetStatusNetworkList(t.Context(), list); !errors.As(err, &e) || e.Code != ErrLimited || e.Msg != "ovs-vswitchd is not running" {
		t.Errorf("STATUS of a limited agent: %v", err)
	}
}

func TestInAChainTheResultIsAddedToThePreviousOne(t *testing.T) {
	netns, _ := sandbox(t)
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	runtime, rt := cniRuntime(t), attachment(netns)
	list := network(t, "1.1.0", a.socket, []string{"first"}, []string{"second"})
	result, err := runtime.AddNetworkList(t.Context(), list, rt)
	if err != nil {
		t.Fatal(err)
	}
	if err := runtime.CheckNetworkList(t.Context(), list, rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	want := `{
  "cniVersion": "1.1.0",
  "interfaces": [
    {"mac": "02:00:00:00:00:01", "name": "first0"},
    {"mac": "02:00:00:00:00:aa", "mtu": 1450, "name": "tw0a1b2c3d"},
    {"mac": "02:00:00:00:00:bb", "mtu": 1450, "name": "eth0", "sandbox": "` + netns + `"}
  ],
  "ips": [
    {"address": "203.0.113.5/32", "gateway": "203.0.113.1", "interface": 2},
    {"address": "2001:db8::5/128", "gateway": "2001:db8::1", "interface": 2}
  ],
  "routes": [
    {"dst": "198.51.100.0/24"},
    {"dst": "203.0.113.1/32"},
    {"dst": "0.0.0.0/0", "gw": "203.0.113.1"},
    {"dst": "::/0", "gw": "2001:db8::1"}
  ]
}`
	if diff := cmp.Diff(normal(t, want), asJSON(t, result)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestAnErrorOfTheAgentReachesTheRuntime(t *testing.T) {
	netns, _ := sandbox(t)
	a := serve(t, ServerConfig{Handler: (&fakeAgent{}).fail(Errorf(ErrNoFreeAddress, "podCIDR 203.0.113.0/29 has no free address").Advise("give the node a larger podCIDR"))})
	runtime, list := cniRuntime(t), network(t, "1.0.0", a.socket, nil, nil)
	_, err := runtime.AddNetworkList(t.Context(), list, attachment(netns))
	want := `plugin type="twill-cni" failed (add): podCIDR 203.0.113.0/29 has no free address; give the node a larger podCIDR`
	var e *types.Error
	if !errors.As(err, &e) || e.Code != ErrNoFreeAddress || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestTheNamespaceIsClosedBeforeTheAnswer(t *testing.T) {
	netns, _ := sandbox(t)
	before, after := countOpen(t, netns), -1
	a := serve(t, ServerConfig{Handler: &fakeAgent{}, Observe: func(string, time.Duration, error) { after = countOpen(t, netns) }})
	runtime, list := cniRuntime(t), network(t, "1.1.0", a.socket, nil, nil)
	if _, err := runtime.AddNetworkList(t.Context(), list, attachment(netns)); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if err := a.wait(); err != nil || before != after {
		t.Errorf("%d descriptors of the namespace before, %d when the answer is sent; %v", before, after, err)
	}
}

// asJSON is a value as indented JSON with sorted keys.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return normal(t, string(raw))
}

func normal(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// wantResult is what the fake agent's ADD should look like. The library's 0.x results always have dns.
func wantResult(t *testing.T, cniVersion, netns string) string {
	mtu, v4, v6, dns := `"mtu": 1450,`, "", "", ""
	if cniVersion < "1" {
		mtu, v4, v6, dns = "", `"version": "4",`, `"version": "6",`, `"dns": {},`
	}
	return normal(t, `{
  "cniVersion": "`+cniVersion+`",`+dns+`
  "interfaces": [
    {`+mtu+`"mac": "02:00:00:00:00:aa", "name": "tw0a1b2c3d"},
    {`+mtu+`"mac": "02:00:00:00:00:bb", "name": "eth0", "sandbox": "`+netns+`"}
  ],
  "ips": [
    {`+v4+`"address": "203.0.113.5/32", "gateway": "203.0.113.1", "interface": 1},
    {`+v6+`"address": "2001:db8::5/128", "gateway": "2001:db8::1", "interface": 1}
  ],
  "routes": [
    {"dst": "203.0.113.1/32"},
    {"dst": "0.0.0.0/0", "gw": "203.0.113.1"},
    {"dst": "::/0", "gw": "2001:db8::1"}
  ]
}`)
}
