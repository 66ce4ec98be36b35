package cni

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the golden files")

// conf is a network configuration with further keys.
func conf(more ...string) string {
	return "{" + strings.Join(append([]string{`"cniVersion":"1.1.0"`, `"name":"twill"`, `"type":"twill-cni"`}, more...), ",") + "}"
}

func env(command string, more ...string) map[string]string {
	e := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "sandbox-1", "CNI_NETNS": "/nowhere/netns",
		"CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
	for _, pair := range more {
		key, value, _ := strings.Cut(pair, "=")
		e[key] = value
	}
	return e
}

// TestErrorsReadLikeThis compares the whole output for each error that needs no agent. The text is in
// testdata/errors.txtar; -update writes it.
func TestErrorsReadLikeThis(t *testing.T) {
	absent := conf(`"socket":"/nowhere/cni.sock"`)
	cases := []struct {
		name  string
		env   map[string]string
		stdin string
	}{
		{"no command", map[string]string{}, ""},
		{"unknown command", env("UPDATE"), conf()},
		{"missing environment", env("ADD", "CNI_NETNS=", "CNI_IFNAME="), conf()},
		{"interface name too long", env("ADD", "CNI_IFNAME=interface-name-16"), conf()},
		{"interface name with a slash", env("DEL", "CNI_IFNAME=../eth0"), conf()},
		{"container id with a slash", env("ADD", "CNI_CONTAINERID=../../etc"), conf()},
		{"args without a value", env("ADD", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME"), conf()},
		{"configuration is not JSON", env("ADD"), "{"},
		{"configuration is a list", env("ADD"), "[]"},
		{"no version", env("ADD"), `{"name":"twill"}`},
		{"version of the future", env("ADD"), `{"cniVersion":"2.0.0","name":"twill"}`},
		{"version is a number", env("ADD"), `{"cniVersion":1,"name":"twill"}`},
		{"no CHECK before 0.4.0", env("CHECK"), `{"cniVersion":"0.3.1","name":"twill"}`},
		{"no STATUS before 1.1.0", env("STATUS"), `{"cniVersion":"1.0.0","name":"twill"}`},
		{"no GC before 1.1.0", env("GC"), `{"cniVersion":"1.0.0","name":"twill","cni.dev/valid-attachments":[]}`},
		{"no name", env("ADD"), `{"cniVersion":"1.1.0"}`},
		{"name with a slash", env("ADD"), `{"cniVersion":"1.1.0","name":"a/b"}`},
		{"relative socket", env("ADD"), conf(`"socket":"cni.sock"`)},
		{"socket is a number", env("ADD"), conf(`"socket":5`)},
		{"runtimeConfig is a list", env("ADD"), conf(`"runtimeConfig":[]`)},
		{"ipam", env("ADD"), conf(`"ipam":{"type":"host-local"}`)},
		{"CHECK without prevResult", env("CHECK"), conf()},
		{"prevResult is a string", env("ADD"), conf(`"prevResult":"eth0"`)},
		{"prevResult of another kind", env("ADD"), conf(`"prevResult":{"cniVersion":"1.1.0","ips":"none"}`)},
		{"prevResult of an unknown version", env("CHECK"), conf(`"prevResult":{"cniVersion":"3.0.0"}`)},
		{"GC without attachments", env("GC"), conf()},
		{"GC with malformed attachments", env("GC"), conf(`"cni.dev/valid-attachments":["sandbox-1"]`)},
		{"network namespace is gone", env("ADD"), conf()},
		{"network namespace is a file", env("ADD", "CNI_NETNS=/dev/null"), conf()},
		{"network namespace is the host's", env("ADD", "CNI_NETNS=/proc/self/ns/net"), conf()},
		{"network namespace is a PID namespace", env("ADD", "CNI_NETNS=/proc/self/ns/pid"), conf()},
		{"ADD without an agent", env("ADD", "CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1"), absent},
		{"DEL without an agent", env("DEL", "CNI_NETNS="), absent},
		{"DEL of a vanished namespace, with a broken prevResult, without an agent", env("DEL"), conf(`"socket":"/nowhere/cni.sock"`, `"prevResult":5`, `"ipam":{"type":"host-local"}`)},
		{"DEL with args without a value, without an agent", env("DEL", "CNI_ARGS=K8S_POD_NAME"), absent},
		{"GC without an agent", env("GC"), conf(`"socket":"/nowhere/cni.sock"`, `"cni.dev/valid-attachments":[]`)},
		{"STATUS without an agent", env("STATUS"), absent},
		{"VERSION of a broken question", env("VERSION"), "{"},
	}
	golden := filepath.Join("testdata", "errors.txtar")
	got := &txtar.Archive{}
	for _, c := range cases {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		status, out := run(ctx, c.env, c.stdin)
		cancel()
		if status != 1 {
			t.Errorf("%s: exit status %d", c.name, status)
		}
		got.Files = append(got.Files, txtar.File{Name: c.name, Data: []byte(out)})
	}
	if *update {
		if err := os.WriteFile(golden, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
}

func TestVersionAnswersInTheVersionOfTheQuestion(t *testing.T) {
	for stdin, want := range map[string]string{
		`{"cniVersion":"0.4.0"}`: `{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`,
		``:                       `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`,
	} {
		status, out := run(t.Context(), map[string]string{"CNI_COMMAND": "VERSION"}, stdin)
		if status != 0 || out != want+"\n" {
			t.Errorf("VERSION %s: %d %s", stdin, status, out)
		}
	}
}

// answer is the agent as a script: it takes the request and answers with a text, if any.
func answer(t *testing.T, text string, until <-chan struct{}) string {
	t.Helper()
	socket := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Read(make([]byte, 64<<10))
		c.Write([]byte(text))
		if until != nil {
			<-until
		}
	}()
	return socket
}

func TestAnAgentThatAnswersNonsenseIsAnError(t *testing.T) {
	for _, c := range []struct {
		name, answer, command string
		code                  uint
		says                  string
	}{
		{"not JSON", "hello\n", "DEL", ErrDecoding, "the agent sent a line that is not a message"},
		{"half a line", `{"version":1,`, "DEL", ErrTryAgain, "ended the connection without an answer to DEL"},
		{"nothing", "", "DEL", ErrTryAgain, "ended the connection without an answer to DEL"},
		{"nothing to STATUS", "", "STATUS", ErrNotAvailable, "ended the connection without an answer to STATUS"},
		{"an older agent", `{"version":0,"result":5}` + "\n", "DEL", ErrWireVersion, "upgrade the agent; upgrade the agent of this node"},
		{"a newer agent", `{"version":2,"result":5}` + "\n", "DEL", ErrWireVersion, "upgrade the plugin; restart the agent"},
		{"a result of another type", `{"version":1,"result":5}` + "\n", "DEL", ErrDecoding, "the agent sent a malformed message"},
		{"ADD without a result", `{"version":1}` + "\n", "ADD", ErrDecoding, "the agent answered ADD without a result"},
		{"an endless line", strings.Repeat("x", maxMessage), "DEL", ErrTryAgain, "the answer is longer than 4194304 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := env(c.command, "CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=true")
			status, out := run(t.Context(), e, conf(`"socket":"`+answer(t, c.answer, nil)+`"`))
			got := decodeError(t, out)
			if status != 1 || got.Code != c.code || !strings.Contains(got.Error(), c.says) {
				t.Errorf("got %d %s\nwant code %d and %q", status, out, c.code, c.says)
			}
		})
	}
}

func TestAnAgentThatNeverAnswersIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	never := make(chan struct{})
	defer close(never)
	status, out := run(ctx, env("DEL"), conf(`"socket":"`+answer(t, "", never)+`"`))
	if got := decodeError(t, out); status != 1 || got.Code != ErrTryAgain || !strings.Contains(got.Msg, "did not answer DEL in time") {
		t.Errorf("got %d %s", status, out)
	}
}

func TestAnAbsentAgentIsReportedWithinASecond(t *testing.T) {
	dir := shortDir(t)
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for socket, says := range map[string]string{
		filepath.Join(dir, "missing"): "there is no such socket",
		dead:                          "nobody listens there",
	} {
		// Were the plugin to wait, the context would end first, and the text would say so.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, out := run(ctx, env("DEL"), conf(`"socket":"`+socket+`"`))
		cancel()
		if got := decodeError(t, out); got.Code != ErrTryAgain || !strings.Contains(got.Msg, says) || !strings.Contains(got.Msg, socket) {
			t.Errorf("%s: %s", socket, out)
		}
	}
}

func TestAnAgentThatTakesNoConnectionsIsReportedWithoutWaiting(t *testing.T) {
	socket := filepath.Join(shortDir(t), "full")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := errors.Join(unix.Bind(l, &unix.SockaddrUnix{Name: socket}), unix.Listen(l, 0)); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", socket) // the queue has room for one
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, out := run(ctx, env("DEL"), conf(`"socket":"`+socket+`"`))
	if got := decodeError(t, out); got.Code != ErrTryAgain || !strings.Contains(got.Msg, "its queue is full") {
		t.Errorf("got %s", out)
	}
	if err := vacant(socket); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("vacant() = %v: a second agent would take the socket over", err)
	}
}

func TestCapabilitiesAndDNSArePassedOn(t *testing.T) {
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	netns, _ := sandbox(t)
	e := env("ADD", "CNI_NETNS="+netns)
	delete(e, "CNI_ARGS")
	status, out := run(t.Context(), e, conf(`"socket":"`+a.socket+`"`, `"dns":{"nameservers":["198.51.100.53"]}`,
		`"runtimeConfig":{"mac":"02:00:00:00:00:07"}`, `"unknown":{"key":[1]}`))
	if status != 0 || !strings.Contains(out, "198.51.100.53") {
		t.Errorf("%d %s", status, out)
	}
	req := fake.last(t)
	if got := string(req.Config.RuntimeConfig["mac"]); got != `"02:00:00:00:00:07"` {
		t.Errorf("runtimeConfig: %s", got)
	}
	if req.Pod != (PodRef{}) {
		t.Errorf("a runtime without Kubernetes: pod %+v", req.Pod)
	}
}

// FuzzRun throws any environment and configuration at the plugin: it must not panic, and what it
// prints is a CNI error, as no agent is there.
func FuzzRun(f *testing.F) {
	f.Add("ADD", "sandbox-1", "eth0", "K8S_POD_NAME=web-0", conf(`"socket":"/nowhere/s"`))
	f.Add("DEL", "sandbox-1", "eth0", "a;b;=", conf(`"socket":"/nowhere/s"`, `"prevResult":{"ips":[{"interface":9}]}`))
	f.Add("GC", "", "", "", conf(`"socket":"/nowhere/s"`, `"cni.dev/attachments":[{"containerID":"a"}]`))
	f.Add("CHECK", "a", "b", "", conf(`"socket":"/nowhere/s"`, `"prevResult":{"cniVersion":"0.2.0","ip4":{"ip":"203.0.113.1/24"}}`))
	f.Fuzz(func(t *testing.T, command, id, ifname, args, stdin string) {
		if command == "VERSION" || strings.Contains(stdin, DefaultSocket) {
			t.Skip()
		}
		e := env(command)
		maps.Copy(e, map[string]string{"CNI_CONTAINERID": id, "CNI_IFNAME": ifname, "CNI_ARGS": args})
		status, out := run(t.Context(), e, stdin)
		if got := decodeError(t, out); status != 1 || got.Code == 0 || got.Msg == "" {
			t.Errorf("%d %s", status, out)
		}
	})
}

func decodeError(t *testing.T, out string) *Error {
	t.Helper()
	var e Error
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatalf("%v: %q is not a CNI error", err, out)
	}
	return &e
}
