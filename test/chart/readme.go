// Package chart makes what is derived from charts/twill: its README, and the manifest for those without Helm.
package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Files that are derived, relative to the root of the repository.
const (
	ReadmeFile   = "charts/twill/README.md"
	ValuesFile   = "charts/twill/values.yaml"
	ManifestFile = "deploy/twill.yaml"
)

const readmeHead = `<!-- Made from values.yaml by ` + "`make chart`" + `; edit that. -->
# The chart of Twill

    helm install twill charts/twill --namespace twill-system --create-namespace --set apiServer=https://ADDRESS:6443

The controller manager must allocate podCIDRs (` + "`--allocate-node-cidrs --cluster-cidr=…`" + `). apiServer may stay empty where
kube-proxy, or whatever else is not Twill, serves the Service kubernetes (serviceProxy=off). Helm 3 and 4 install it. Without Helm: ` + "`kubectl apply -f deploy/twill.yaml`" + `, which is the
chart with its default values and the namespace twill-system; set server: in its ConfigMap before.
[docs/kubernetes.md](../../docs/kubernetes.md) says what it installs and what it is allowed to do.

## Values

A value that the chart does not have, or of a wrong kind, is refused by name (values.schema.json).

| value | default | what it is |
|---|---|---|
`

// Readme is the README of a chart with these values. Every value must have a comment.
func Readme(values []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(values, &doc); err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString(readmeHead)
	err := rows(&out, "", doc.Content[0])
	return out.String(), err
}

// rows writes a line for each value; a mapping without a comment is described by what is in it.
func rows(out *strings.Builder, prefix string, mapping *yaml.Node) error {
	var failed []error
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		name := prefix + key.Value
		if key.HeadComment == "" && value.Kind == yaml.MappingNode {
			failed = append(failed, rows(out, name+".", value))
			continue
		}
		if key.HeadComment == "" {
			failed = append(failed, fmt.Errorf("value %s (line %d) has no comment", name, key.Line))
			continue
		}
		var plain any
		if err := value.Decode(&plain); err != nil {
			return fmt.Errorf("value %s: %w", name, err)
		}
		shown, err := json.Marshal(plain)
		if err != nil {
			return fmt.Errorf("value %s: %w", name, err)
		}
		// A blank line parts a comment about the file from one about the value.
		comment := key.HeadComment[strings.LastIndex(key.HeadComment, "\n\n")+1:]
		lines := strings.Split(strings.TrimSpace(comment), "\n")
		for j, l := range lines {
			lines[j] = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(l), "#"))
		}
		text := strings.ReplaceAll(strings.Join(lines, " "), "|", "\\|")
		fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", name, shown, text)
	}
	return errors.Join(failed...)
}
