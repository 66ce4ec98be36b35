package openflow

import (
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// capture gives a bundle to ovs-ofctl and returns the messages that it sends to a switch for it, without their
// transaction numbers.
func capture(t *testing.T, bundle string) [][]byte {
	t.Helper()
	tool, err := exec.LookPath("ovs-ofctl")
	if err != nil {
		t.Skip("ovs-ofctl is missing; make deps installs it")
	}
	socket := filepath.Join(t.TempDir(), "switch")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan [][]byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		var messages [][]byte
		defer func() { got <- messages }()
		_, _ = c.Write([]byte{6, 0, 0, 8, 0, 0, 0, 1}) // OFPT_HELLO
		for {
			head := make([]byte, 8)
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			body := make([]byte, binary.BigEndian.Uint16(head[2:])-8)
			if _, err := io.ReadFull(c, body); err != nil {
				return
			}
			switch head[1] {
			case 33: // OFPT_BUNDLE_CONTROL: every request is answered with the type after its own
				body[5]++
				_, _ = c.Write(append(head, body...))
			case 34: // OFPT_BUNDLE_ADD_MESSAGE
				inner := body[8:]
				clear(inner[4:8])
				messages = append(messages, inner)
			case 20: // OFPT_BARRIER_REQUEST
				head[1] = 21
				_, _ = c.Write(head)
			}
		}
	}()
	cmd := exec.Command(tool, "-O", "OpenFlow15", "-vconsole:off", "--no-names", "bundle", "unix:"+socket, "-")
	cmd.Stdin = strings.NewReader(bundle)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ovs-ofctl: %v: %s", err, out)
	}
	return <-got
}
