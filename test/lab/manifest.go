package lab

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Object is a Kubernetes object as its manifest has it.
type Object map[string]any

func (o Object) str(path ...string) string {
	var v any = map[string]any(o)
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	s, _ := v.(string)
	return s
}

// String is kind/namespace/name, or kind/name of a cluster-scoped object.
func (o Object) String() string {
	s := strings.ToLower(o.str("kind")) + "/"
	if ns := o.str("metadata", "namespace"); ns != "" {
		s += ns + "/"
	}
	return s + o.str("metadata", "name")
}

// file is the name of the object's file among the manifests. Names of Kubernetes objects have no
// underscore, so no two objects share one.
func (o Object) file() string { return strings.ReplaceAll(o.String(), "/", "_") + ".yaml" }

func newObject(kind, namespace, name string) Object {
	metadata := map[string]any{
		"name":              name,
		"uid":               newUID(),
		"creationTimestamp": time.Now().UTC().Format(time.RFC3339),
	}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	return Object{"apiVersion": "v1", "kind": kind, "metadata": metadata}
}

// newUID is a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// clusterScoped are the kinds that have no namespace, among those that a pod network looks at.
var clusterScoped = []string{"Node", "Namespace", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy", "ServiceCIDR", "IPAddress"}

// ParseManifests reads YAML or JSON documents; items of a List become objects of their own. A
// namespaced object without a namespace goes to default, as with kubectl.
func ParseManifests(data []byte) ([]Object, error) {
	var objects []Object
	documents := yamlreader.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		var o Object
		if err := yaml.Unmarshal(document, &o); err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
		if o == nil {
			continue
		}
		items, isList := o["items"].([]any)
		if !isList {
			items = []any{map[string]any(o)}
		}
		for _, item := range items {
			m, _ := item.(map[string]any)
			o, err := complete(m)
			if err != nil {
				return nil, fmt.Errorf("document %d: %w", i, err)
			}
			objects = append(objects, o)
		}
	}
}

func complete(o Object) (Object, error) {
	metadata, _ := o["metadata"].(map[string]any)
	if o.str("apiVersion") == "" || o.str("kind") == "" || o.str("metadata", "name") == "" {
		return nil, errors.New("an object needs apiVersion, kind and metadata.name")
	}
	if strings.ContainsAny(o.String(), "_ ") || strings.Contains(o.str("metadata", "name"), "/") {
		return nil, fmt.Errorf("%s: not a name that Kubernetes would take", o)
	}
	if !slices.Contains(clusterScoped, o.str("kind")) && o.str("metadata", "namespace") == "" {
		metadata["namespace"] = "default"
	}
	return o, nil
}

// Apply puts objects into the cluster, one file each, and says which. What the object does not say,
// its uid and time of creation, stays as it was, as it would in an API server.
func (l *Lab) Apply(objects []Object) ([]string, error) {
	var done []string
	for _, o := range objects {
		path := l.path("manifests", o.file())
		if err := inherit(o, path); err != nil {
			return done, err
		}
		data, err := yaml.Marshal(o)
		if err != nil {
			return done, fmt.Errorf("%s: %w", o, err)
		}
		if err := writeFile(path, data); err != nil {
			return done, err
		}
		done = append(done, o.String())
	}
	return done, nil
}

func inherit(o Object, path string) error {
	var old Object
	data, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(data, &old)
	} else if errors.Is(err, fs.ErrNotExist) {
		old, err = newObject("", "", ""), nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	metadata := o["metadata"].(map[string]any)
	for _, field := range []string{"uid", "creationTimestamp"} {
		if v := old.str("metadata", field); v != "" && metadata[field] == nil {
			metadata[field] = v
		}
	}
	return nil
}

// Delete takes objects out of the cluster and says which were there.
func (l *Lab) Delete(objects []Object) ([]string, error) {
	var done []string
	for _, o := range objects {
		err := os.Remove(l.path("manifests", o.file()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return done, err
		}
		done = append(done, o.String())
	}
	return done, nil
}
