package packets

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/twill-net/twill/test/lab"
)

// patience bounds every conversation; on an idle machine each takes milliseconds.
func patience() time.Duration { return 5 * time.Second * lab.Slow() }

// host is somebody who can open sockets: a pod, a node or the host outside.
type host struct {
	name      string
	netns     string
	addresses []netip.Addr
}

// talkTCP has a client send size random bytes to a server, which answers with their SHA-256, and
// returns the address that the server saw.
func talkTCP(client, server host, at netip.Addr, size int) (seen netip.Addr, err error) {
	var l net.Listener
	if err := lab.Inside(server.netns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}); err != nil {
		return seen, fmt.Errorf("%s cannot listen: %w", server.name, err)
	}
	defer l.Close()
	type accepted struct {
		from netip.Addr
		err  error
	}
	served := make(chan accepted, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- accepted{err: err}
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * patience()))
		h := sha256.New()
		_, err = io.Copy(h, io.LimitReader(c, int64(size)))
		_, werr := c.Write(h.Sum(nil))
		served <- accepted{c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), errors.Join(err, werr)}
	}()
	var c net.Conn
	if err := lab.Inside(client.netns, func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), patience())
		return err
	}); err != nil {
		return seen, fmt.Errorf("%s cannot connect: %w", client.name, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * patience()))
	payload := make([]byte, size)
	rand.Read(payload)
	if _, err := c.Write(payload); err != nil {
		return seen, err
	}
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, got); err != nil {
		return seen, fmt.Errorf("the answer to %d bytes: %w", size, err)
	}
	if sha256.Sum256(payload) != [sha256.Size]byte(got) {
		return seen, fmt.Errorf("%d bytes arrived changed", size)
	}
	s := <-served
	return s.from, s.err
}

// talkUDP has a client send one datagram of size random bytes, once, which the server sends back, and
// returns the address that the server saw. The client asks from its address own when that is valid.
func talkUDP(client, server host, at netip.Addr, size int) (seen netip.Addr, err error) {
	var s, c *net.UDPConn
	if err := lab.Inside(server.netns, func() (err error) {
		s, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	}); err != nil {
		return seen, fmt.Errorf("%s cannot listen: %w", server.name, err)
	}
	defer s.Close()
	if err := lab.Inside(client.netns, func() (err error) {
		c, err = net.DialUDP("udp", nil, s.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		return seen, fmt.Errorf("%s cannot send: %w", client.name, err)
	}
	defer c.Close()
	payload := make([]byte, size)
	rand.Read(payload)
	if _, err := c.Write(payload); err != nil {
		return seen, err
	}
	buf := make([]byte, size+1)
	s.SetDeadline(time.Now().Add(patience()))
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		return seen, fmt.Errorf("%s got nothing: %w", server.name, err)
	}
	if string(buf[:n]) != string(payload) {
		return seen, errors.New("the datagram arrived changed")
	}
	if _, err := s.WriteToUDPAddrPort(buf[:n], from); err != nil {
		return seen, err
	}
	c.SetDeadline(time.Now().Add(patience()))
	if n, err = c.Read(buf); err != nil || string(buf[:n]) != string(payload) {
		return seen, fmt.Errorf("the answer of %d bytes: %w", n, err)
	}
	return from.Addr().Unmap(), nil
}

// get reads a page over a connection of the namespace that the thread is in.
func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// Dial here: the transport would do it on a thread of its own, elsewhere.
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", req.URL.Host)
	if err != nil {
		return "", err
	}
	defer c.Close()
	t := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, DisableKeepAlives: true}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
