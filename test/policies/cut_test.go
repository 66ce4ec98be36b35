package policies

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/test/lab"
	"github.com/twill-net/twill/test/labtest"
)

// TestAConnectionThatAPolicyBeginsToForbidIsCut has a server that sends without end to a client that asked once.
// The client's policies allow that at first; what answers is let through by connection tracking alone, so only the
// deletion of its entry can stop it.
func TestAConnectionThatAPolicyBeginsToForbidIsCut(t *testing.T) {
	l := up(t, 2)
	pods, err := l.AddPods(t.Context(), []lab.Pod{
		{Namespace: "shop", Name: "client", Node: "node-1", Labels: map[string]string{"app": "client"}},
		{Namespace: "shop", Name: "server", Node: "node-2", Labels: map[string]string{"app": "server"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	client, server := pods[0], pods[1]
	const head = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
`
	for _, address := range server.Addresses {
		family := "IPv6"
		if address.Is4() {
			family = "IPv4"
		}
		t.Run(family, func(t *testing.T) {
			defer labtest.Apply(t, l, head+"  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]\n")()
			inForce(t, l, "node-1", "networkpolicy/shop/client/egress/0")
			endless(t, server, 90)
			conn, err := within(client.NetNS, func() (net.Conn, error) {
				return net.Dial("udp", netip.AddrPortFrom(address, 90).String())
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for end := time.Now().Add(15 * time.Second); ; {
				if _, err := conn.Write([]byte("?")); err != nil {
					t.Fatal(err)
				}
				if hears(conn, 300*time.Millisecond) {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the stream never began")
				}
			}
			for range 20 {
				if !hears(conn, time.Second) {
					t.Fatal("the stream stopped by itself")
				}
			}
			labtest.Apply(t, l, head)
			changed, last := time.Now(), time.Now()
			for hears(conn, 2*time.Second) {
				if last = time.Now(); last.Sub(changed) > 10*time.Second {
					t.Fatal("the stream goes on although nothing is allowed any more")
				}
			}
			t.Logf("the last packet came %s after the change was written", last.Sub(changed).Round(time.Millisecond))
		})
	}
}

// inForce waits until the bridge of a node has flows of that owner. What was open before is not remembered.
func inForce(t *testing.T, l *lab.Lab, node, owner string) {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	ask := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.AdminSocket())
	}}}
	defer ask.CloseIdleConnections()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		resp, err := ask.Get("http://agent/v1/flows?owner=" + owner)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), `"owner": "`+owner) {
			return
		}
	}
	t.Fatalf("%s has no flows of %s", node, owner)
}

func hears(c net.Conn, d time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(d)) // a socket that cannot have one fails below
	_, err := c.Read(make([]byte, 4))
	return err == nil
}

// endless sends each 10 ms to whoever sent something last.
func endless(t *testing.T, p lab.Pod, port int) {
	t.Helper()
	u, err := within(p.NetNS, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { close(done); u.Close() })
	peer := make(chan *net.UDPAddr, 16)
	go func() {
		for {
			_, from, err := u.ReadFromUDP(make([]byte, 4))
			if err != nil {
				return
			}
			select {
			case peer <- from:
			default:
			}
		}
	}()
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var to *net.UDPAddr
		for {
			select {
			case <-done:
				return
			case to = <-peer:
			case <-tick.C:
				if to != nil {
					_, _ = u.WriteToUDP([]byte("!"), to) // lost packets are the point
				}
			}
		}
	}()
}
