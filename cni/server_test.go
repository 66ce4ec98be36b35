package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func dial(t testing.TB, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends bytes, ends the sending side, and returns the answer; nil if there was none.
func say(t testing.TB, socket string, what []byte) *Response {
	t.Helper()
	c := dial(t, socket)
	go func() {
		c.Write(what)
		c.CloseWrite()
	}()
	line, err := bufio.NewReader(c).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	var resp Response
	if err := json.Unmarshal(line, &resp); err != nil || resp.Version != WireVersion {
		t.Fatalf("%q is not a response: %v", line, err)
	}
	return &resp
}

func TestMalformedRequestsGetAnError(t *testing.T) {
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	for _, c := range []struct {
		name, request string
		code          uint
		says          string
	}{
		{"not JSON", "GET / HTTP/1.1\n", ErrDecoding, "the plugin sent a line that is not a message"},
		{"half a line", `{"version":1`, ErrDecoding, "the request ends within a line"},
		{"a number", "5\n", ErrDecoding, "the plugin sent a line that is not a message"},
		{"an old plugin", `{"version":0}` + "\n", ErrWireVersion, "upgrade the plugin; restart the agent"},
		{"a new plugin", `{"version":9,"command":{}}` + "\n", ErrWireVersion, "upgrade the agent; upgrade the agent"},
		{"a field of another type", `{"version":1,"command":[]}` + "\n", ErrDecoding, "the plugin sent a malformed message"},
		{"an unknown command", `{"version":1,"command":"UPDATE"}` + "\n", ErrDecoding, `unknown command "UPDATE"`},
		{"no container", `{"version":1,"command":"DEL"}` + "\n", ErrDecoding, "lacks containerID or ifname"},
		{"no file", `{"version":1,"command":"ADD","containerID":"a","ifname":"b"}` + "\n", ErrInvalidNetNS, "came without the network namespace"},
		{"too long", strings.Repeat("x", maxMessage+1), ErrDecoding, "longer than 4194304 bytes"},
	} {
		resp := say(t, a.socket, []byte(c.request))
		if resp == nil || resp.Error == nil || resp.Error.Code != c.code || !strings.Contains(resp.Error.Error(), c.says) {
			t.Errorf("%s: got %+v, want code %d, %q", c.name, resp, c.code, c.says)
		}
	}
	if fake.count() != 0 {
		t.Errorf("the handler was asked %d times", fake.count())
	}
	if resp := say(t, a.socket, []byte(`{"version":1,"command":"STATUS"}`+"\n")); resp == nil || resp.Error != nil {
		t.Errorf("a good request after the bad ones: %+v", resp)
	}
}

func TestMoreThanOneFileDescriptorIsRefused(t *testing.T) {
	a := serve(t, ServerConfig{Handler: &fakeAgent{}})
	path := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, n := range []int{2, 50} { // 50 do not fit into the server's buffer
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(file.Fd())
		}
		c := dial(t, a.socket)
		if _, _, err := c.WriteMsgUnix([]byte("{}\n"), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		if !strings.Contains(line, "more than one file descriptor") {
			t.Errorf("%d descriptors: %q", n, line)
		}
	}
	eventually(t, "the server to close the descriptors", func() bool { return countOpen(t, path) == 1 })
}

// countOpen is the number of descriptors of this process for a file.
func countOpen(t *testing.T, path string) (n int) {
	t.Helper()
	file, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if open, err := os.Stat(fd); err == nil && os.SameFile(open, file) {
			n++
		}
	}
	return n
}

func TestAHundredCommandsAtOnceAreAllInFlight(t *testing.T) {
	const n = 100
	var all sync.WaitGroup
	all.Add(n)
	fake := &fakeAgent{during: func(context.Context, *Request) {
		all.Done()
		all.Wait() // returns only if all of them got here
	}}
	var mu sync.Mutex
	observed := map[string]int{}
	a := serve(t, ServerConfig{Handler: fake, Observe: func(command string, _ time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		observed[fmt.Sprint(command, err)]++
	}})
	outputs := make(chan string, n)
	for i := range n {
		go func() {
			_, out := run(t.Context(), env("DEL", fmt.Sprintf("CNI_CONTAINERID=c%d", i)), conf(`"socket":"`+a.socket+`"`))
			outputs <- out
		}()
	}
	for range n {
		if out := <-outputs; out != "" {
			t.Errorf("DEL: %s", out)
		}
	}
	seen := map[string]bool{}
	for _, req := range fake.all() {
		seen[req.ContainerID] = true
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != n || observed["DEL<nil>"] != n {
		t.Errorf("%d containers seen, observed %v", len(seen), observed)
	}
}

func TestEachCommandIsOneLogLine(t *testing.T) {
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	e := env("DEL", "CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
	run(t.Context(), e, conf(`"socket":"`+a.socket+`"`))
	fake.fail(errors.New("no such bridge br-twill"))
	run(t.Context(), e, conf(`"socket":"`+a.socket+`"`))
	fake.fail(nil)
	run(t.Context(), env("STATUS"), conf(`"socket":"`+a.socket+`"`))
	got := regexp.MustCompile(`took="?[^ "]+"?`).ReplaceAllString(a.log.String(), "took=T")
	want := `level=info msg="CNI command" command=DEL ifname=eth0 pod=shop/web-0 sandbox=sandbox-1 took=T
level=warning msg="CNI command failed" command=DEL error="no such bridge br-twill" ifname=eth0 pod=shop/web-0 sandbox=sandbox-1 took=T
level=debug msg="CNI command" command=STATUS took=T
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestAPanicOfTheHandlerIsAnErrorOfOneCommand(t *testing.T) {
	fake := &fakeAgent{during: func(_ context.Context, req *Request) {
		if req.Command == CommandDel {
			panic("index out of range")
		}
	}}
	observed := make(chan error, 1)
	a := serve(t, ServerConfig{Handler: fake, Observe: func(_ string, _ time.Duration, err error) {
		if err != nil {
			observed <- err
		}
	}})
	_, out := run(t.Context(), env("DEL"), conf(`"socket":"`+a.socket+`"`))
	if err := <-observed; !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("observed: %v", err)
	}
	if e := decodeError(t, out); e.Code != ErrInternal || e.Msg != "the agent failed: index out of range" {
		t.Errorf("%+v", e)
	}
	if !strings.Contains(a.log.String(), "server_test.go") {
		t.Errorf("the log does not say where: %s", a.log)
	}
	if status, out := run(t.Context(), env("STATUS"), conf(`"socket":"`+a.socket+`"`)); status != 0 {
		t.Errorf("the next command: %s", out)
	}
}

func TestTheHandlersContextEndsWhenThePluginGoes(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	fake := &fakeAgent{during: func(ctx context.Context, _ *Request) {
		close(began)
		<-ctx.Done()
		close(ended)
	}}
	a := serve(t, ServerConfig{Handler: fake})
	ctx, kill := context.WithCancel(t.Context())
	go func() {
		<-began
		kill()
	}()
	_, out := run(ctx, env("DEL"), conf(`"socket":"`+a.socket+`"`))
	if e := decodeError(t, out); e.Code != ErrTryAgain {
		t.Errorf("%+v", e)
	}
	<-ended
}

func TestStoppingLetsCommandsInFlightFinish(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	fake := &fakeAgent{during: func(ctx context.Context, _ *Request) {
		close(began)
		<-finish
		if ctx.Err() != nil {
			t.Error("the command was cancelled")
		}
	}}
	a := serve(t, ServerConfig{Handler: fake, Grace: time.Minute})
	idle := dial(t, a.socket)
	idle.Write([]byte(`{"version":`))
	output := make(chan string)
	go func() {
		_, out := run(context.Background(), env("DEL"), conf(`"socket":"`+a.socket+`"`))
		output <- out
	}()
	<-began
	a.stop()
	eventually(t, "the socket to go", func() bool {
		_, err := os.Lstat(a.socket)
		return errors.Is(err, os.ErrNotExist)
	})
	idle.SetReadDeadline(time.Now().Add(requestTimeout / 2)) // an answer may not have to wait for the request's timeout
	if line, _ := bufio.NewReader(idle).ReadString('\n'); !strings.Contains(line, `"code":11,"msg":"the agent is stopping"`) {
		t.Errorf("a request that was not complete: %q", line)
	}
	close(finish)
	if out := <-output; out != "" {
		t.Errorf("the command in flight: %s", out)
	}
	if err := a.wait(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestCommandsThatOutlastTheGraceAreCancelled(t *testing.T) {
	began := make(chan struct{})
	fake := &fakeAgent{during: func(ctx context.Context, _ *Request) {
		close(began)
		<-ctx.Done()
	}}
	fake.fail(context.Canceled)
	a := serve(t, ServerConfig{Handler: fake, Grace: time.Millisecond})
	output := make(chan string)
	go func() {
		_, out := run(context.Background(), env("DEL"), conf(`"socket":"`+a.socket+`"`))
		output <- out
	}()
	<-began
	a.stop()
	if e := decodeError(t, <-output); e.Code != ErrTryAgain {
		t.Errorf("%+v", e)
	}
}

func TestTheSocketIsRootsOwnAndReplacesADeadOne(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "run", "cni.sock")
	a := serve(t, ServerConfig{Socket: socket, Handler: &fakeAgent{}})
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := Serve(t.Context(), ServerConfig{Socket: socket, Handler: &fakeAgent{}, Log: a.log.logger()}); err == nil || !strings.Contains(err.Error(), "is a second agent running on this node?") {
		t.Errorf("a second agent: %v", err)
	}
	a.stop()
	if err := a.wait(); err != nil {
		t.Fatal(err)
	}

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	next := serve(t, ServerConfig{Socket: socket, Handler: &fakeAgent{}})
	eventually(t, "the dead socket to be replaced", func() bool {
		status, _ := run(t.Context(), env("STATUS"), conf(`"socket":"`+next.socket+`"`))
		return status == 0
	})
	if left, _ := os.ReadDir(filepath.Dir(socket)); len(left) != 1 {
		t.Errorf("left beside the socket: %v", left)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), ServerConfig{Socket: file}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
}

func TestAnotherUserMayNotAttachPods(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("becoming another user needs root")
		}
		t.Skip("becoming another user needs root")
	}
	fake := &fakeAgent{}
	a := serve(t, ServerConfig{Handler: fake})
	// Let the other user through the file system, so that only the credentials stand in its way.
	if err := errors.Join(os.Chmod(filepath.Dir(a.socket), 0o755), os.Chmod(a.socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	output := make(chan string)
	go func() {
		// The thread is another user's from here on, and ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			output <- errno.Error()
			return
		}
		_, out := run(context.Background(), env("STATUS"), conf(`"socket":"`+a.socket+`"`))
		output <- out
	}()
	out := <-output
	if e := decodeError(t, out); e.Code != ErrForbidden || !strings.Contains(e.Msg, "user 65534") || fake.count() != 0 {
		t.Errorf("%+v", e)
	}
}

// FuzzServe throws any bytes at the server: it answers or closes, and goes on serving.
func FuzzServe(f *testing.F) {
	fake := &fakeAgent{}
	a := serve(f, ServerConfig{Handler: fake})
	for _, seed := range []string{"", "\n", "{}\n", `{"version":1,"command":"DEL","containerID":"a","ifname":"b","prevResult":{}}` + "\n",
		`{"version":1,"command":"GC","validAttachments":[{}],"config":{"runtimeConfig":null}}` + "\n", "\x00\xff", `{"version":1e99}` + "\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, what []byte) {
		say(t, a.socket, what)
		if resp := say(t, a.socket, []byte(`{"version":1,"command":"STATUS"}`+"\n")); resp == nil || resp.Error != nil {
			t.Errorf("afterwards STATUS is %+v", resp)
		}
	})
}
