package preview

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// Objects are what verdicts depend on.
type Objects struct {
	Pods       []*policy.Pod       `json:"pods"`
	Namespaces []*policy.Namespace `json:"namespaces"`
	Nodes      []flows.Node        `json:"nodes"`
	Policies   []*policy.Policy    `json:"policies"`
}

// ObjectsOf reads them from a source.
func ObjectsOf(s source.Source) Objects {
	o := Objects{Nodes: s.Nodes()}
	o.Pods = all[*policy.Pod](s, "Pod")
	o.Namespaces = all[*policy.Namespace](s, "Namespace")
	o.Policies = append(all[*policy.Policy](s, "NetworkPolicy"), all[*policy.Policy](s, "ClusterNetworkPolicy")...)
	return o
}

func all[T any](s source.Source, kind string) (out []T) {
	for _, k := range s.Keys(kind) {
		if v, ok := s.Get(k).(T); ok {
			out = append(out, v)
		}
	}
	return out
}

// File is a file of manifests.
type File struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Request is what an operator means to do.
type Request struct {
	// Files hold NetworkPolicies and ClusterNetworkPolicies to be applied. Objects of other kinds are left out.
	Files []File `json:"files,omitempty"`
	// Delete names policies to be deleted: networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME. Those of
	// Files are applied after.
	Delete []string `json:"delete,omitempty"`
	// Namespace is that of NetworkPolicies which name none.
	Namespace string `json:"namespace"`
}

// maxEncoded bounds an encoded Request, in bytes: it has to fit into an argument of a program (128 KiB, execve(2)).
const maxEncoded = 120 << 10

// Encode makes the text that Decode reads; it can stand in a URL.
func (r Request) Encode() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	_, err = zip.Write(text)
	if err = errors.Join(err, zip.Close()); err != nil {
		return "", err
	}
	out := base64.RawURLEncoding.EncodeToString(b.Bytes())
	if len(out) > maxEncoded {
		return "", fmt.Errorf("the manifests have %d bytes when packed, more than the %d that a question can carry: preview them in parts", len(out), maxEncoded)
	}
	return out, nil
}

// maxText bounds what a Request may unpack to.
const maxText = 16 << 20

// Decode reads what Encode made.
func Decode(text string) (Request, error) {
	var r Request
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return r, fmt.Errorf("no request for a preview: %w", err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return r, fmt.Errorf("no request for a preview: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(zip, maxText)).Decode(&r); err != nil {
		return r, fmt.Errorf("no request for a preview: %w", err)
	}
	return r, nil
}

// change is a Request that was read.
type change struct {
	apply   []*policy.Policy
	delete  []string
	ignored int
}

// read reads the manifests of a request. What the API server would refuse is an error that names file, object and
// field.
func (r Request) read() (change, error) {
	c := change{delete: r.Delete}
	seen := map[string]string{}
	for _, f := range r.Files {
		list, ignored, err := source.DecodePolicies(f.Name, []byte(f.Text), r.Namespace)
		if err != nil {
			return c, err
		}
		for _, p := range list {
			if first, again := seen[p.Owner()]; again {
				return c, fmt.Errorf("%s: %s is defined in %s already", f.Name, p.Owner(), first)
			}
			seen[p.Owner()] = f.Name
		}
		c.apply, c.ignored = append(c.apply, list...), c.ignored+ignored
	}
	if len(c.apply)+len(c.delete) == 0 {
		return c, fmt.Errorf("nothing to preview: the manifests hold no NetworkPolicy and no ClusterNetworkPolicy (objects of other kinds: %d)", c.ignored)
	}
	return c, nil
}

// versions are the policies before and after, by owner, and which of them the change touches.
func (c change) versions(o Objects) (before, after map[string]*policy.Policy, touched map[string]bool, err error) {
	before, touched = map[string]*policy.Policy{}, map[string]bool{}
	for _, p := range o.Policies {
		before[p.Owner()] = p
	}
	after = maps.Clone(before)
	for _, owner := range c.delete {
		if before[owner] == nil {
			return nil, nil, nil, unknown(owner, before)
		}
		delete(after, owner)
	}
	for _, p := range c.apply {
		after[p.Owner()] = p
	}
	for _, owner := range slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(after))) {
		if !same(before[owner], after[owner]) {
			touched[owner] = true
		}
	}
	// ClusterNetworkPolicies of one priority share its room for rules: one more may close the others.
	for owner := range maps.Clone(touched) {
		for _, side := range []map[string]*policy.Policy{before, after} {
			p := side[owner]
			if p == nil || p.Namespace != "" {
				continue
			}
			for _, other := range slices.Concat(slices.Collect(maps.Values(before)), slices.Collect(maps.Values(after))) {
				if other.Namespace == "" && other.Tier == p.Tier && other.Priority == p.Priority {
					touched[other.Owner()] = true
				}
			}
		}
	}
	return before, after, touched, nil
}

func unknown(owner string, have map[string]*policy.Policy) error {
	if kind, rest, _ := strings.Cut(owner, "/"); rest == "" || kind != "networkpolicy" && kind != "clusternetworkpolicy" {
		return fmt.Errorf("%q names no policy: use networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME", owner)
	}
	return fmt.Errorf("there is no %s to delete; %d policies are known", owner, len(have))
}

// same is true for two policies that say the same.
func same(a, b *policy.Policy) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.UID, y.UID = "", ""
	return reflect.DeepEqual(x, y)
}
