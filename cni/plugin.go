package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// maxConfig bounds what is read from standard input, in bytes.
const maxConfig = 1 << 20

// Timeout is how long the plugin waits for the agent's answer to a command. All are shorter than the
// runtime's patience, so that it is the plugin that gives up, and says why: kubelet ends a sandbox's
// creation after 4 minutes, twice its --runtime-request-timeout, and its removal after 2.
func Timeout(command string) time.Duration {
	switch command {
	case CommandStatus:
		return 5 * time.Second // called in the runtime's status loop, every few seconds
	case CommandCheck:
		return 30 * time.Second
	}
	return 60 * time.Second
}

// Plugin is one execution of the CNI plugin.
type Plugin struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	// Release is the release of the plugin, for people that run it by hand.
	Release string
}

// Main is the plugin as a process: environment in, exit status out.
func Main() {
	release := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		release = info.Main.Version
	}
	p := Plugin{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Release: release}
	os.Exit(p.Run(context.Background()))
}

// Run executes the command that the environment names and returns the exit status. It ends when ctx
// does, or after Timeout.
func (p Plugin) Run(ctx context.Context) int {
	req := &Request{Version: WireVersion, Command: p.Getenv("CNI_COMMAND")}
	out, err := p.run(ctx, req)
	status := 0
	if err != nil {
		status = 1
		out = p.report(req, asError(err))
	}
	if _, err := p.Stdout.Write(out); err != nil {
		fmt.Fprintf(p.Stderr, "twill-cni: %s is done, but its output cannot be written: %v\n", req.Command, err)
		return 1
	}
	return status
}

func (p Plugin) run(ctx context.Context, req *Request) ([]byte, error) {
	if req.Command == "" {
		fmt.Fprintf(p.Stderr, "twill-cni %s, CNI plugin of Twill; versions of the CNI specification: %s\n",
			p.Release, strings.Join(supported().SupportedVersions(), ", "))
		return nil, Errorf(ErrInvalidEnvironment, "CNI_COMMAND of the environment is not set").
			Advise("twill-cni is executed by container runtimes; CNI_COMMAND=VERSION shows that it works")
	}
	stdin, err := io.ReadAll(io.LimitReader(p.Stdin, maxConfig+1))
	if err != nil {
		return nil, Errorf(ErrIO, "the network configuration cannot be read from standard input: %w", err)
	}
	if len(stdin) > maxConfig {
		return nil, Errorf(ErrIO, "the network configuration on standard input is longer than %d bytes", maxConfig)
	}
	if req.Command == "VERSION" {
		return versions(stdin)
	}
	if err := environment(p.Getenv, req); err != nil {
		return nil, err
	}
	if err := parseNetConf(stdin, req); err != nil {
		return nil, err
	}
	var netns *os.File
	if req.Command == CommandAdd || req.Command == CommandCheck {
		override := strings.ToLower(p.Getenv("CNI_NETNS_OVERRIDE"))
		if netns, err = openNetNS(req.NetNS, override == "true" || override == "1"); err != nil {
			return nil, err
		}
		defer netns.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout(req.Command))
	defer cancel()
	resp, err := ask(ctx, req, netns)
	if err != nil {
		return nil, err
	}
	if req.Command != CommandAdd {
		return nil, nil
	}
	return p.result(req, resp.Result)
}

// result makes what ADD prints of the agent's answer.
func (p Plugin) result(req *Request, r *Result) ([]byte, error) {
	if r == nil {
		return nil, Errorf(ErrDecoding, "the agent answered ADD without a result")
	}
	merged, err := r.merge(req)
	if err != nil {
		return nil, err
	}
	converted, err := merged.GetAsVersion(req.Config.CNIVersion)
	if err != nil {
		return nil, Errorf(ErrIncompatibleVersion, "the result cannot be told in CNI %s: %w", req.Config.CNIVersion, err)
	}
	var out bytes.Buffer
	err = converted.PrintTo(&out)
	return out.Bytes(), err
}

// report makes what is printed of an error. cniVersion is part of it since 0.2.0, but the library's
// type has no room for it.
func (p Plugin) report(req *Request, e *Error) []byte {
	v := req.Config.CNIVersion
	if v == "" {
		v = types100.ImplementedSpecVersion
	}
	out, _ := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		*Error
	}{v, e}, "", "    ")
	return append(out, '\n')
}

// versions answers VERSION, in the version of the question.
func versions(stdin []byte) ([]byte, error) {
	answer := struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{version.Current(), supported().SupportedVersions()}
	var question struct {
		CNIVersion string `json:"cniVersion"`
	}
	if len(bytes.TrimSpace(stdin)) > 0 {
		if err := json.Unmarshal(stdin, &question); err != nil {
			return nil, Errorf(ErrDecoding, "standard input of VERSION is not a JSON object with cniVersion: %w", err)
		}
	}
	if question.CNIVersion != "" {
		answer.CNIVersion = question.CNIVersion
	}
	return encode(answer)
}
