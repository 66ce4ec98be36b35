package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
)

func TestDiffersFindsEachDamageOfThePreviousResult(t *testing.T) {
	req := &Request{IfName: "eth0", NetNS: "/run/netns/a"}
	merged, err := attached().merge(req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(merged)
	if err != nil {
		t.Fatal(err)
	}
	req.PrevResult = raw
	if err := attached().Differs(req); err != nil {
		t.Errorf("what ADD reported differs from what it made: %v", err)
	}

	for _, c := range []struct {
		name   string
		damage func(r *Result, req *Request)
		says   string
	}{
		{"another host interface", func(r *Result, _ *Request) { r.HostInterface = "tw1" }, "prevResult has no host interface tw1"},
		{"another interface", func(_ *Result, req *Request) { req.IfName = "net1" }, "prevResult has no interface net1 with a sandbox"},
		{"another MAC", func(r *Result, _ *Request) { r.MAC = "02:00:00:00:00:cc" }, "has the hardware address 02:00:00:00:00:bb, but it was given 02:00:00:00:00:cc"},
		{"another address", func(r *Result, _ *Request) { r.Addresses[1] = netip.MustParseAddr("2001:db8::6") }, "does not list the address 2001:db8::6 at interface eth0"},
		{"an address at another interface", func(_ *Result, req *Request) {
			req.PrevResult = bytes.Replace(raw, []byte(`"interface":1`), []byte(`"interface":0`), 1)
		}, "does not list the address 203.0.113.5 at interface eth0"},
		{"no result", func(_ *Result, req *Request) { req.PrevResult = nil }, "prevResult has no interface eth0"},
	} {
		r, damaged := attached(), *req
		c.damage(r, &damaged)
		err := r.Differs(&damaged)
		var e *Error
		if !errors.As(err, &e) || e.Code != ErrDiffers || !strings.Contains(e.Msg, c.says) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.says)
		}
	}
}

func TestPreviousResultsOfOlderVersionsAreConverted(t *testing.T) {
	for cniVersion, previous := range map[string]string{
		"0.3.1": `{"interfaces":[{"name":"eth0","sandbox":"/a"}],"ips":[{"version":"4","interface":0,"address":"203.0.113.5/32"}]}`,
		"0.4.0": `{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/a"}],"ips":[{"version":"4","interface":0,"address":"203.0.113.5/32"}]}`,
		"1.0.0": `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/a"}],"ips":[{"interface":0,"address":"203.0.113.5/32"}]}`,
	} {
		req := &Request{Command: CommandAdd}
		stdin := fmt.Sprintf(`{"cniVersion":%q,"name":"twill","prevResult":%s}`, cniVersion, previous)
		if err := parseNetConf([]byte(stdin), req); err != nil {
			t.Errorf("%s: %v", cniVersion, err)
			continue
		}
		got, err := req.Previous()
		if err != nil || got.CNIVersion != "1.1.0" || len(got.IPs) != 1 || got.IPs[0].Address.String() != "203.0.113.5/32" || got.Interfaces[0].Sandbox != "/a" {
			t.Errorf("%s: %+v, %v", cniVersion, got, err)
		}
	}
}

func TestAnErrorKeepsCodeCauseAndContext(t *testing.T) {
	e := Errorf(ErrPort, "port tw0: %w", fs.ErrPermission).Advise("see ovs-vswitchd.log")
	if !errors.Is(e, fs.ErrPermission) {
		t.Error("the cause is lost")
	}
	got := asError(fmt.Errorf("attach shop/web-0: %w", e))
	if got.Code != ErrPort || got.Error() != "attach shop/web-0: port tw0: permission denied; see ovs-vswitchd.log" {
		t.Errorf("%d %q", got.Code, got.Error())
	}
	if got := asError(errors.New("odd")); got.Code != ErrInternal || got.Msg != "odd" {
		t.Errorf("%+v", got)
	}
}
