package preview

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/twill-net/twill/agent/inspect"
)

// Path is where Register answers, with an encoded Request as the parameter "request".
const Path = "/v1/policy/preview"

// Register adds the question to a server. objects says what is known now, or why nothing is.
func Register(mux *http.ServeMux, objects func() (Objects, error)) {
	mux.HandleFunc("GET "+Path, inspect.Answer(func(ctx context.Context, v url.Values) (any, error) {
		r, err := Decode(v.Get("request"))
		if err != nil {
			return nil, err
		}
		o, err := objects()
		if err != nil {
			return nil, err
		}
		if len(o.Pods) == 0 && len(o.Nodes) == 0 {
			return nil, errors.New("no Pods and no Nodes are known: there is nobody whose connections could be judged")
		}
		return Preview(ctx, o, r)
	}))
}
