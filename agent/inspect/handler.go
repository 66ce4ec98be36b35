package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// maxSamples bounds how much one request for a verification costs: 0.5 ms each.
const maxSamples = 20000

// Register adds the questions of this package to a server, answered for the subject.
func Register(mux *http.ServeMux, s *Subject) {
	mux.HandleFunc("GET /v1/flows", Answer(func(ctx context.Context, v url.Values) (any, error) {
		return s.Flows(ctx, Filter{Owner: v.Get("owner"), Table: v.Get("table"), Drops: v.Get("drops") != ""})
	}))
	mux.HandleFunc("GET /v1/drops", Answer(func(ctx context.Context, _ url.Values) (any, error) { return s.Drops(ctx) }))
	mux.HandleFunc("GET /v1/peers", Answer(func(context.Context, url.Values) (any, error) {
		w, err := s.world()
		if err != nil {
			return nil, err
		}
		return slices.Sorted(maps.Keys(w.Peers)), nil
	}))
	mux.HandleFunc("GET /v1/locate", Answer(func(_ context.Context, v url.Values) (any, error) { return s.Locate(v.Get("name")) }))
	mux.HandleFunc("GET /v1/trace", Answer(func(ctx context.Context, v url.Values) (any, error) {
		q, err := parseQuestion(v)
		if err != nil {
			return nil, err
		}
		return s.Trace(ctx, q)
	}))
	mux.HandleFunc("GET /v1/why", Answer(func(ctx context.Context, v url.Values) (any, error) {
		q, err := parseQuestion(v)
		if err != nil {
			return nil, err
		}
		return s.Why(ctx, q)
	}))
	mux.HandleFunc("GET /v1/verify", Answer(func(ctx context.Context, v url.Values) (any, error) {
		n, err := number(v, "samples", maxSamples)
		if err != nil {
			return nil, err
		}
		seed, err := number(v, "seed", 0)
		if err != nil {
			return nil, err
		}
		return s.Verify(ctx, int(n), seed)
	}))
}

func number(v url.Values, name string, limit uint64) (uint64, error) {
	text := v.Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, bad("%s %q: it is no number", name, text)
	}
	if limit > 0 && n > limit {
		return 0, bad("%s %d: at most %d", name, n, limit)
	}
	return n, nil
}

// Answer turns a function into a handler that answers JSON, or an error as one line of text: 400 for an error
// of the asker, 404 for a name that is unknown here, 500 for all others.
func Answer(f func(context.Context, url.Values) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r.Context(), r.URL.Query())
		if err != nil {
			code := http.StatusInternalServerError
			switch {
			case errors.As(err, &badRequest{}):
				code = http.StatusBadRequest
			case errors.As(err, &notFound{}):
				code = http.StatusNotFound
			}
			http.Error(w, err.Error(), code)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			fmt.Fprintln(w, err) // the asker went away, or sees a broken answer
		}
	}
}
