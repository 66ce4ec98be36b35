package source

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/twill-net/twill/agent/policy"
)

// DecodePolicies reads the NetworkPolicies and ClusterNetworkPolicies of a file that is not in force. A NetworkPolicy
// that names no namespace is of the one given. The error names file, line, object and field; a policy that can be
// used only in part is one, too. ignored counts objects of other kinds.
func DecodePolicies(name string, data []byte, namespace string) (list []*policy.Policy, ignored int, err error) {
	known := slices.DeleteFunc(kinds(), func(k kind) bool { return k.Kind != "NetworkPolicy" && k.Kind != "ClusterNetworkPolicy" })
	d := &decoder{name: name, kinds: known, namespace: namespace}
	err = d.file(data)
	var f *fault
	if errors.As(err, &f) {
		return nil, 0, fmt.Errorf("%s:%d: %s", name, f.line, f.reason)
	}
	if err != nil {
		return nil, 0, err
	}
	for _, o := range d.objects {
		if len(o.entry.problems) > 0 {
			return nil, 0, errors.New(o.entry.problems[0].String())
		}
		if p, ok := o.entry.value.(*policy.Policy); ok {
			list = append(list, p)
		}
	}
	return list, d.ignored, nil
}

// ReadDirectory reads a directory of manifests once, without following it. The error names what cannot be read.
func ReadDirectory(dir string, log logrus.FieldLogger) (*Manifests, error) {
	m, err := NewManifests(ManifestsConfig{Dir: dir, Log: log})
	if err != nil {
		return nil, err
	}
	if err := m.read(); err != nil {
		return nil, fmt.Errorf("manifest directory %s cannot be read: %w", dir, err)
	}
	if !m.Synced() {
		var reasons []error
		for _, p := range m.Problems() {
			reasons = append(reasons, errors.New(p.String()))
		}
		return nil, fmt.Errorf("the manifests in %s are not complete: %w", dir, errors.Join(reasons...))
	}
	return m, nil
}
