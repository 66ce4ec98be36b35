package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/sirupsen/logrus"
)

// TestMain lets this binary be the plugins of a network: libcni executes it under their names.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0") // plugins built with -race would end a second late
		os.Exit(m.Run())
	}
	switch filepath.Base(os.Args[0]) {
	case "first":
		chained(`"interfaces":[{"name":"first0","mac":"02:00:00:00:00:01"}],"ips":[],"routes":[{"dst":"198.51.100.0/24"}]`)
	case "second":
		chained("")
	default:
		Main()
	}
}

// chained is another plugin of a network: it makes a result of its own, or passes prevResult on.
func chained(own string) {
	var conf struct {
		CNIVersion string          `json:"cniVersion"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Getenv("CNI_COMMAND") != "ADD" {
		return
	}
	if own != "" {
		fmt.Printf(`{"cniVersion":%q,%s}`, conf.CNIVersion, own)
		return
	}
	os.Stdout.Write(conf.PrevResult)
}

// fakeAgent remembers what it was asked and answers what it was told to.
type fakeAgent struct {
	during func(ctx context.Context, req *Request)

	mu     sync.Mutex
	err    error
	asked  []*Request
	inodes []uint64 // of the network namespaces that were passed
}

func (f *fakeAgent) take(ctx context.Context, req *Request, netns *os.File) error {
	var st syscall.Stat_t
	if netns != nil {
		if err := syscall.Fstat(int(netns.Fd()), &st); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.asked = append(f.asked, req)
	if netns != nil {
		f.inodes = append(f.inodes, st.Ino)
	}
	f.mu.Unlock()
	if f.during != nil {
		f.during(ctx, req)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// fail makes the following commands return err.
func (f *fakeAgent) fail(err error) *fakeAgent {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	return f
}

func (f *fakeAgent) Add(ctx context.Context, req *Request, netns *os.File) (*Result, error) {
	if err := f.take(ctx, req, netns); err != nil {
		return nil, err
	}
	return attached(), nil
}

func (f *fakeAgent) Del(ctx context.Context, req *Request) error { return f.take(ctx, req, nil) }

func (f *fakeAgent) Check(ctx context.Context, req *Request, netns *os.File) error {
	if err := f.take(ctx, req, netns); err != nil {
		return err
	}
	return attached().Differs(req)
}

func (f *fakeAgent) GC(ctx context.Context, req *Request) error     { return f.take(ctx, req, nil) }
func (f *fakeAgent) Status(ctx context.Context, req *Request) error { return f.take(ctx, req, nil) }

func (f *fakeAgent) last(t *testing.T) *Request {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.asked) == 0 {
		t.Fatal("the agent was not asked")
	}
	return f.asked[len(f.asked)-1]
}

func (f *fakeAgent) all() []*Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *fakeAgent) count() int { return len(f.all()) }

func (f *fakeAgent) namespaces() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.inodes)
}

// attached is what the fake agent's ADD makes.
func attached() *Result {
	return &Result{
		HostInterface: "tw0a1b2c3d",
		HostMAC:       "02:00:00:00:00:aa",
		MAC:           "02:00:00:00:00:bb",
		MTU:           1450,
		Addresses:     []netip.Addr{netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8::5")},
		Gateways:      []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")},
		Routes: []Route{
			{Destination: netip.MustParsePrefix("203.0.113.1/32")},
			{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("203.0.113.1")},
			{Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("2001:db8::1")},
		},
	}
}

// shortDir is a temporary directory whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "twill")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// log is a log that can be read while it is written.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) logger() logrus.FieldLogger {
	logger := logrus.New()
	logger.SetOutput(l)
	logger.SetLevel(logrus.DebugLevel)
	logger.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	return logger
}

// agent is a running server.
type agent struct {
	socket string
	log    *log
	// stop ends the context; wait returns what Serve returned.
	stop context.CancelFunc
	wait func() error
}

// serve runs the server until the end of the test; it returns when the socket is there.
func serve(t testing.TB, c ServerConfig) agent {
	t.Helper()
	if c.Socket == "" {
		c.Socket = filepath.Join(shortDir(t), "cni.sock")
	}
	a := agent{socket: c.Socket, log: &log{}}
	if c.Log == nil {
		c.Log = a.log.logger()
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, c) }()
	a.stop = stop
	a.wait = sync.OnceValue(func() error { return <-ended })
	t.Cleanup(func() {
		stop()
		if err := a.wait(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	eventually(t, "the socket", func() bool {
		_, err := os.Lstat(c.Socket)
		return err == nil
	})
	return a
}

// eventually waits for a condition, not for a time; the bound is for broken code.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// sandbox makes a network namespace and returns its path and inode.
func sandbox(t *testing.T) (string, uint64) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	ns, err := testutils.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := testutils.UnmountNS(ns); err != nil {
			t.Errorf("somebody still holds the namespace: %v", err)
			syscall.Unmount(ns.Path(), syscall.MNT_DETACH)
			os.Remove(ns.Path())
		}
	})
	var st syscall.Stat_t
	if err := syscall.Stat(ns.Path(), &st); err != nil {
		t.Fatal(err)
	}
	return ns.Path(), st.Ino
}

// run executes the plugin in this process and returns its exit status and output.
func run(ctx context.Context, env map[string]string, stdin string) (int, string) {
	var out bytes.Buffer
	p := Plugin{
		Stdin:   strings.NewReader(stdin),
		Stdout:  &out,
		Stderr:  &bytes.Buffer{},
		Getenv:  func(key string) string { return env[key] },
		Release: "test",
	}
	return p.Run(ctx), out.String()
}
