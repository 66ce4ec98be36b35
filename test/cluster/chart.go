package cluster

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

const manifestHead = `# Twill for kubectl apply: the chart charts/twill with its default values. Made by ` + "`make chart`" + `; edit the chart.
# Before kubectl apply, set server: in the ConfigMap to https://ADDRESS:6443 of the API server: the agents serve Services,
# which is what its address in the cluster is. Or let kube-proxy run, and set service-proxy: "off". Before kubectl delete,
# drain the nodes and run twill uninstall on each.
apiVersion: v1
kind: Namespace
metadata:
  name: ` + TwillNamespace + `
`

// Manifest renders the chart of a checkout as one file, with what Helm alone understands left out.
func (p Programs) Manifest(ctx context.Context, checkout string) (string, error) {
	rendered, err := p.Template(ctx, checkout, "--set", "cleanUp=false")
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString(manifestHead)
	for line := range strings.Lines(rendered) {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "app.kubernetes.io/managed-by:"), strings.HasPrefix(trimmed, "helm.sh/chart:"), strings.HasPrefix(trimmed, "# Source:"):
		default:
			out.WriteString(line)
		}
	}
	return out.String(), nil
}

// Template renders the chart of a checkout with what else `helm template` is told; its error is what Helm says.
func (p Programs) Template(ctx context.Context, checkout string, args ...string) (string, error) {
	return p.helm(ctx, checkout, append([]string{"template", "twill", "charts/twill", "--namespace", TwillNamespace, "--kube-version", p.Version}, args...)...)
}

// helm runs helm where no cluster is needed.
func (p Programs) helm(ctx context.Context, checkout string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.path("helm"), args...)
	cmd.Dir = checkout
	return outputOf(cmd)
}

// outputOf runs a command and turns what it said into the error.
func outputOf(cmd *exec.Cmd) (string, error) {
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
