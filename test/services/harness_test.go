// Package services sends real packets to Services through real agents and says, as Kubernetes' documentation
// does, who has to answer and whom the server has to see.
//
// A test opens its sockets inside the namespaces of the lab, on a thread that has entered it. It needs root and
// the programs in bin/ (`make build`).
package services

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// patience bounds every conversation; on an idle machine each takes milliseconds.
const patience = 3 * time.Second

// addPods attaches pods "name@node-1" at once, in namespace default.
func addPods(t *testing.T, l *lab.Lab, specs ...string) map[string]lab.Pod {
	t.Helper()
	out := map[string]lab.Pod{}
	for _, p := range labtest.AddPods(t, l, specs...) {
		out[p.Name] = p
	}
	return out
}

// serve answers everybody at a port of a namespace, by TCP and UDP, with its name and the address and port that it sees.
func serve(t *testing.T, ns, name string, port uint16) {
	t.Helper()
	var l net.Listener
	var u *net.UDPConn
	if err := lab.Inside(ns, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		u, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}); err != nil {
		t.Fatalf("%s cannot listen: %v", name, err)
	}
	t.Cleanup(func() { l.Close(); u.Close() })
	go labtest.Accept(l, func(c net.Conn) {
		seen := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		for b := make([]byte, 64); ; {
			c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := c.Read(b); err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", name, netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()))
		}
	})
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
	err = lab.Inside(ns, func() error {
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

// refused is true for what a reset or an ICMP error makes of a conversation, and a reject on the way out (EPERM).
func refused(err error) bool {
	var n net.Error
	return err != nil && !(errors.As(err, &n) && n.Timeout()) && (strings.Contains(err.Error(), "refused") || errors.Is(err, unix.EPERM))
}
