// Package services sends real packets to Services through real agents and says, as Kubernetes' documentation
// does, who has to answer and whom the server has to see.
//
// A test opens its sockets inside the namespaces of the lab, on a thread that has entered it. It needs root and
// the programs in bin/ (`make build`).
package services

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/ovsd"
)

// patience bounds every conversation; on an idle machine each takes milliseconds.
const patience = 3 * time.Second

// up builds a lab that is taken down after the test.
func up(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		ovsd.Missing(t, "network namespaces need root")
	}
	for _, tool := range []string{"ip", "ethtool", "nft", "ovs-vswitchd"} {
		ovsd.Need(t, tool)
	}
	if os.Getenv("TWILL_LAB_DIR") == "" {
		dir, err := os.MkdirTemp("", "ts")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		t.Setenv("TWILL_LAB_DIR", dir)
	}
	o.Name = "s" + strings.ToLower(rand.Text()[:6])
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(lab.Dir(o.Name), "nodes", "*", "agent.log"))
			for _, file := range logs {
				data, _ := os.ReadFile(file)
				lines := strings.Split(strings.TrimSpace(string(data)), "\n")
				t.Logf("%s:\n%s", file, strings.Join(lines[max(0, len(lines)-12):], "\n"))
			}
		}
		if err := lab.Down(context.WithoutCancel(t.Context()), o.Name); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// addPods attaches pods "name@node-1" at once, in namespace default.
func addPods(t *testing.T, l *lab.Lab, specs ...string) map[string]lab.Pod {
	t.Helper()
	pods := make([]lab.Pod, len(specs))
	for i, spec := range specs {
		name, node, _ := strings.Cut(spec, "@")
		pods[i] = lab.Pod{Namespace: "default", Name: name, Node: node}
	}
	pods, err := l.AddPods(t.Context(), pods)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]lab.Pod{}
	for _, p := range pods {
		out[p.Name] = p
	}
	return out
}

// of picks the address of a family.
func of(family string, addresses []netip.Addr) netip.Addr {
	for _, a := range addresses {
		if a.Is4() == (family == "IPv4") {
			return a
		}
	}
	return netip.Addr{}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// inside calls f on a thread that has entered a network namespace; sockets that f opens stay there.
func inside(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread dies with this goroutine
		done <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// serve answers everybody at a port of a namespace, by TCP and UDP, with its name and the address and port that it sees.
func serve(t *testing.T, ns, name string, port uint16) {
	t.Helper()
	var l net.Listener
	var u *net.UDPConn
	if err := inside(ns, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		u, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatalf("%s cannot listen: %v", name, err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
				for b := make([]byte, 64); ; {
					c.SetDeadline(time.Now().Add(time.Minute))
					if _, err := c.Read(b); err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s", name, netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()))
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", name, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())), from)
		}
	}()
}

// answer is what a server said.
type answer struct {
	server string
	seen   netip.AddrPort
}

// dial opens a socket from a local port (0: any) of a namespace.
func dial(ns, network string, to netip.AddrPort, from uint16) (net.Conn, error) {
	return dialWithin(ns, network, to, from, patience)
}

func dialWithin(ns, network string, to netip.AddrPort, from uint16, within time.Duration) (c net.Conn, err error) {
	err = inside(ns, func() error {
		d := net.Dialer{Timeout: within}
		if from != 0 {
			d.Control = func(_, _ string, raw syscall.RawConn) (err error) { // several connections from one port
				failed := raw.Control(func(fd uintptr) {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
						unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
				})
				return errors.Join(failed, err)
			}
			d.LocalAddr = &net.TCPAddr{Port: int(from)}
			if network == "udp" {
				d.LocalAddr = &net.UDPAddr{Port: int(from)}
			}
		}
		c, err = d.Dial(network, to.String())
		return err
	})
	return c, err
}

// ask says something on an open connection and returns the answer.
func ask(c net.Conn) (answer, error) { return askWithin(c, patience) }

func askWithin(c net.Conn, within time.Duration) (answer, error) {
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("?")); err != nil {
		return answer{}, err
	}
	b := make([]byte, 128)
	n, err := c.Read(b)
	if err != nil {
		return answer{}, err
	}
	name, seen, ok := strings.Cut(string(b[:n]), " ")
	ap, err := netip.ParseAddrPort(seen)
	if !ok || err != nil {
		return answer{}, fmt.Errorf("an answer that makes no sense: %q", b[:n])
	}
	return answer{name, ap}, nil
}

// talk is one connection with one question.
func talk(ns, network string, to netip.AddrPort) (answer, error) {
	return talkWithin(ns, network, to, patience)
}

func talkWithin(ns, network string, to netip.AddrPort, within time.Duration) (answer, error) {
	c, err := dialWithin(ns, network, to, 0, within)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	return askWithin(c, within)
}

// shortly is how long silence has to last where nobody is to answer.
const shortly = time.Second

func node(t *testing.T, l *lab.Lab, name string) *lab.Node {
	t.Helper()
	n, err := l.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// apply puts manifests into the cluster.
func apply(t *testing.T, l *lab.Lab, manifests string) {
	t.Helper()
	objects, err := lab.ParseManifests([]byte(manifests))
	if err == nil {
		_, err = l.Apply(objects)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds; it says what is wrong, or nil.
func eventually(t *testing.T, within time.Duration, what string, wrong func() error) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := wrong()
		if last == nil {
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %v", what, within, last)
		}
		<-tick.C
	}
}

func onNode(t *testing.T, l *lab.Lab, node string, args ...string) string {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, args...)
	if err != nil || out.Code != 0 {
		t.Fatalf("on %s: %s: %v, exit code %d\n%s%s", node, strings.Join(args, " "), err, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

func nodeNS(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	n, err := l.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return "/run/netns/" + n.NetNS()
}

func outsideNS(l *lab.Lab) string { return "/run/netns/twl-" + l.Name + "-outside" }

// refused is true for what a reset or an ICMP error makes of a conversation, and a reject on the way out (EPERM).
func refused(err error) bool {
	var n net.Error
	return err != nil && !(errors.As(err, &n) && n.Timeout()) && (strings.Contains(err.Error(), "refused") || errors.Is(err, unix.EPERM))
}
