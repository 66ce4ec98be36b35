package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/ovs"
)

// offline answers without an agent, from a report or from a flow dump beside manifests.
type offline struct {
	bundle, dump, groups, manifests, node string
	// objectsOnly is for questions about objects, which need no flows.
	objectsOnly bool
}

func (o *offline) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.bundle, "bundle", "", "report (twill report) to look at instead of a live node")
	f.StringVar(&o.dump, "dump", "", "output of ovs-ofctl dump-flows to look at instead of a live node, - for standard input")
	f.StringVar(&o.groups, "groups", "", "output of ovs-ofctl dump-groups, for --dump where Services are served")
	f.StringVar(&o.manifests, "manifests", "", "directory with the objects of the cluster, for --dump")
	f.StringVar(&o.node, "as-node", "", "node that --dump is of; empty finds it by its addresses")
}

func (o *offline) used() bool {
	return o.bundle != "" || o.dump != "" || o.objectsOnly && o.manifests != ""
}

// check refuses half an order.
func (o *offline) check() error {
	switch {
	case o.objectsOnly && o.dump != "":
		return errors.New("--dump says nothing about policies: use --manifests alone, or --bundle")
	case o.bundle != "" && (o.dump != "" || o.manifests != ""):
		return errors.New("--bundle has all that is needed: leave --dump and --manifests away")
	case o.dump != "" && o.manifests == "":
		return errors.New("--dump needs --manifests: without the objects no flow has a name (" + inspect.RemedyManifests + ")")
	case o.dump == "" && o.groups != "":
		return errors.New("--groups needs --dump and --manifests: groups are what flows lead to")
	case o.dump == "" && o.manifests != "" && !o.objectsOnly:
		return errors.New("--manifests needs --dump: which flows shall be explained?")
	}
	return nil
}

// way answers in this process.
func (o *offline) way(context.Context, string) (http.RoundTripper, error) {
	if o.objectsOnly {
		return o.objects()
	}
	mux := http.NewServeMux()
	subject, err := o.subject(mux)
	if err != nil {
		return nil, err
	}
	inspect.Register(mux, subject)
	mux.HandleFunc("GET /v1/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, r.URL.Path+" can be asked of a live agent only", http.StatusInternalServerError)
	})
	return inProcess{mux}, nil
}

func (o *offline) subject(mux *http.ServeMux) (*inspect.Subject, error) {
	if o.bundle == "" {
		text, err := readAll(o.dump)
		if err != nil {
			return nil, fmt.Errorf("--dump %s: %w", o.dump, err)
		}
		groups := ""
		if o.groups != "" {
			if groups, err = readAll(o.groups); err != nil {
				return nil, fmt.Errorf("--groups %s: %w", o.groups, err)
			}
			if !strings.Contains(groups, "OFPST_GROUP_DESC") && !strings.Contains(groups, "group_id=") {
				return nil, fmt.Errorf("--groups %s: this is no output of `ovs-ofctl -O OpenFlow15 dump-groups`", o.groups)
			}
		}
		s, err := inspect.Recover(inspect.Dump{Flows: text, Groups: groups, Manifests: o.manifests, Node: o.node}, ovs.System())
		if err != nil {
			return nil, fmt.Errorf("--dump %s: %w", o.dump, err)
		}
		return s, nil
	}
	a, err := o.archive()
	if err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		data, err := a.Status()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(data) // into memory
	})
	s, err := a.Subject(ovs.System())
	if err != nil {
		return nil, fmt.Errorf("--bundle %s: %w", o.bundle, err)
	}
	return s, nil
}

// archive reads the report.
func (o *offline) archive() (*inspect.Archive, error) {
	f, err := os.Open(o.bundle)
	if err != nil {
		return nil, fmt.Errorf("--bundle: %w", err)
	}
	defer f.Close()
	a, err := inspect.ReadArchive(f)
	if err != nil {
		return nil, fmt.Errorf("--bundle %s: %w", o.bundle, err)
	}
	return a, nil
}

func readAll(path string) (string, error) {
	if path == "-" {
		text, err := io.ReadAll(os.Stdin)
		return string(text), err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// inProcess is a server in this process as a way to it.
type inProcess struct{ http.Handler }

func (p inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	w := answer{header: http.Header{}, code: http.StatusOK}
	p.ServeHTTP(&w, req)
	return &http.Response{StatusCode: w.code, Header: w.header, Body: io.NopCloser(&w.Buffer)}, nil
}

// answer collects what a handler says.
type answer struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (a *answer) Header() http.Header  { return a.header }
func (a *answer) WriteHeader(code int) { a.code = code }
