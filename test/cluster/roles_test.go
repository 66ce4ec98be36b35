//go:build e2e

package cluster

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// rarelyUsed are rights that a short run need not use, each with its use.
func rarelyUsed() []string {
	return []string{
		"patch events", // one that repeats
	}
}

// roles compares what the agents have asked the API server for with what the chart lets them. Of the audit log it skips
// the first bytes, which are about an earlier installation. What is unused need not have been asked for.
func roles(t *testing.T, c *Cluster, skip int64, unused ...string) {
	ctx := t.Context()
	asked, refused := requests(t, c, skip)
	for _, r := range refused {
		t.Errorf("refused: %s", r)
	}
	if len(asked) == 0 {
		t.Fatal("the audit log has no request of an agent")
	}
	rights := granted(ctx, t, c)
	for _, r := range append(unused, rarelyUsed()...) {
		if slices.Contains(rights, r) && !slices.Contains(asked, r) {
			asked = append(asked, r)
		}
	}
	slices.Sort(asked)
	if diff := cmp.Diff(asked, rights); diff != "" {
		t.Errorf("what the agents asked for (-) and what the roles allow (+) differ:\n%s", diff)
	}
}

// documentedRoles compares the roles with the table in docs/kubernetes.md.
func documentedRoles(t *testing.T, c *Cluster, root string) {
	text, err := os.ReadFile(filepath.Join(root, "docs/kubernetes.md"))
	must(t, err)
	_, table, found := strings.Cut(string(text), "| verbs | resource | for |\n|---|---|---|\n")
	if !found {
		t.Fatal("docs/kubernetes.md has no table | verbs | resource | for |")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			t.Fatalf("docs/kubernetes.md: %q has not three columns", line)
		}
		for verb := range strings.SplitSeq(cells[1], ",") {
			for resource := range strings.SplitSeq(cells[2], ",") {
				documented = append(documented, strings.TrimSpace(verb)+" "+strings.TrimSpace(resource))
			}
		}
	}
	slices.Sort(documented)
	if diff := cmp.Diff(granted(t.Context(), t, c), documented); diff != "" {
		t.Errorf("the roles (-) and docs/kubernetes.md (+) differ:\n%s", diff)
	}
}

// right names a verb and a resource as `kubectl auth can-i` takes them: "list endpointslices.discovery.k8s.io".
func right(verb, resource, group, subresource string) string {
	out := verb + " " + resource
	if group != "" {
		out += "." + group
	}
	if subresource != "" {
		out += "/" + subresource
	}
	return out
}

// requests are the different things that the agents have asked the API server for so far, by its audit log.
func requests(t *testing.T, c *Cluster, skip int64) (allowed, refused []string) {
	t.Helper()
	file, err := os.ReadFile(c.AuditLog())
	must(t, err)
	for line := range strings.Lines(string(file[skip:])) {
		var e struct {
			Verb        string
			User        struct{ Username string }
			ObjectRef   *struct{ Resource, Subresource, APIGroup, Namespace string }
			Annotations map[string]string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			continue // the last line may be half written
		}
		if e.ObjectRef == nil || e.User.Username != "system:serviceaccount:"+TwillNamespace+":twill-agent" {
			continue
		}
		r := right(e.Verb, e.ObjectRef.Resource, e.ObjectRef.APIGroup, e.ObjectRef.Subresource)
		if e.Annotations["authorization.k8s.io/decision"] == "allow" {
			allowed = append(allowed, r)
		} else {
			refused = append(refused, r)
		}
	}
	for _, list := range []*[]string{&allowed, &refused} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return allowed, refused
}

// granted is what the chart's roles let the agent do.
func granted(ctx context.Context, t *testing.T, c *Cluster) []string {
	t.Helper()
	out, err := c.Kubectl(ctx, "get", "clusterroles,roles", "-A", "-l", "app.kubernetes.io/name=twill,app.kubernetes.io/component!=cleanup", "-o", "json")
	must(t, err)
	var list struct {
		Items []struct {
			Rules []struct{ APIGroups, Resources, Verbs []string }
		}
	}
	must(t, json.Unmarshal([]byte(out), &list))
	var rights []string
	for _, role := range list.Items {
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					resource, subresource, _ := strings.Cut(resource, "/")
					for _, verb := range rule.Verbs {
						rights = append(rights, right(verb, resource, group, subresource))
					}
				}
			}
		}
	}
	slices.Sort(rights)
	return rights
}
