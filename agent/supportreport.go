package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// recentLog keeps the last lines of the agent's log for a report.
type recentLog struct {
	mu    sync.Mutex
	lines []string
	next  int
}

// recentLines bounds it; a line is seldom longer than 300 bytes.
const recentLines = 2000

func (r *recentLog) attach(log *logrus.Logger) *logrus.Logger {
	log.AddHook(r)
	return log
}

// Levels implements logrus.Hook.
func (r *recentLog) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (r *recentLog) Fire(e *logrus.Entry) error {
	text, err := (&logrus.TextFormatter{DisableColors: true, FullTimestamp: true}).Format(e)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) < recentLines {
		r.lines = append(r.lines, string(text))
		return nil
	}
	r.lines[r.next] = string(text)
	r.next = (r.next + 1) % recentLines
	return nil
}

func (r *recentLog) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines[r.next:], "") + strings.Join(r.lines[:r.next], "")
}

// partTimeout bounds each part of a report.
const partTimeout = 10 * time.Second

// serveReport answers GET /v1/report with a tar.gz, see inspect.WriteArchive.
func (a *Agent) serveReport(subject *inspect.Subject) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		if err := a.collect(r.Context(), subject, &b); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/gzip")
		_, _ = w.Write(b.Bytes()) // the asker went away
	}
}

// collect gathers what the offline commands and whoever helps an operator need. A part that cannot be had is
// named with its reason and does not keep the others away.
func (a *Agent) collect(ctx context.Context, subject *inspect.Subject, b *bytes.Buffer) error {
	meta := inspect.Meta{Version: a.version, Node: a.cfg.NodeName, Bridge: a.cfg.Bridge, At: time.Now().UTC(), Missing: map[string]string{}}
	var files []inspect.File
	add := func(name string, make func(context.Context) (string, error)) {
		ctx, cancel := context.WithTimeout(ctx, partTimeout)
		defer cancel()
		text, err := make(ctx)
		if err != nil {
			meta.Missing[name] = err.Error()
			return
		}
		files = append(files, inspect.File{Name: name, Data: []byte(withoutSecrets(text))})
	}
	asJSON := func(v any) (string, error) {
		text, err := json.MarshalIndent(v, "", "  ")
		return string(text), err
	}
	sw := ovs.NewSwitch(a.cfg.Bridge, a.cfg.OVSRunDir, ovs.System())
	unixctl := func(method string, args ...string) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			d, err := a.daemon.current()
			if err != nil {
				return "", err
			}
			return d.Call(ctx, method, args...)
		}
	}
	var world *flows.World
	a.loop.view(func(_ *flows.Desired, w *flows.World, _ Applied) { world = w })
	add(inspect.FileStatus, func(ctx context.Context) (string, error) { return asJSON(a.status(ctx)) })
	add(inspect.FileWorld, func(context.Context) (string, error) {
		if world == nil {
			return "", cmp.Or(a.loop.ready(), fmt.Errorf("no flows have been compiled yet"))
		}
		return asJSON(world)
	})
	add(inspect.FileObjects, func(context.Context) (string, error) {
		objects, err := a.objects()
		text, failed := json.Marshal(objects) // there may be many
		return string(text), cmp.Or(err, failed)
	})
	add(inspect.FileFlows, func(ctx context.Context) (string, error) { return sw.Dump(ctx) })
	add(inspect.FileGroups, sw.Groups)
	add(inspect.FileDrops, func(ctx context.Context) (string, error) {
		drops, err := subject.Drops(ctx)
		text, failed := asJSON(drops)
		return text, cmp.Or(err, failed)
	})
	add(inspect.FileManifests, func(context.Context) (string, error) { return a.manifests(world) })
	add("ovsdb.json", func(context.Context) (string, error) {
		return asJSON(map[string]any{"openVSwitch": a.db.Info(), "ports": a.db.Ports(a.cfg.Bridge)})
	})
	add("datapath.txt", unixctl("dpif/show"))
	add("megaflows.txt", unixctl("dpctl/dump-flows"))
	add("coverage.txt", unixctl("coverage/show"))
	add("conntrack.txt", func(ctx context.Context) (string, error) {
		text, err := unixctl("dpctl/dump-conntrack")(ctx)
		return conntrackSummary(text), err
	})
	add("config.yaml", func(context.Context) (string, error) { return a.settingsYAML() })
	add("log.txt", func(context.Context) (string, error) { return a.recent.text(), nil })
	add("host.txt", func(context.Context) (string, error) { return hostFacts(), nil })
	return inspect.WriteArchive(b, meta, files)
}

// secret finds what must not leave a node: keys and passwords in columns, options and command lines.
var secret = regexp.MustCompile(`(?i)((?:psk|password|passwd|token|secret|private_key|bearer)["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,}"']+)`)

func withoutSecrets(text string) string { return secret.ReplaceAllString(text, "${1}REMOVED") }

// conntrackSummary counts connections by protocol and zone: their addresses say who speaks with whom, which is
// nobody's business in a report.
func conntrackSummary(dump string) string {
	count := map[string]int{}
	for line := range strings.Lines(dump) {
		proto, rest, ok := strings.Cut(strings.TrimSpace(line), ",")
		if !ok {
			continue
		}
		zone := "0"
		if _, z, ok := strings.Cut(rest, "zone="); ok {
			zone, _, _ = strings.Cut(z, ",")
		}
		count[fmt.Sprintf("zone %s %s", zone, proto)]++
	}
	var out []string
	for k, n := range count {
		out = append(out, fmt.Sprintf("%s: %d connections\n", k, n))
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "no connections\n"
	}
	return strings.Join(out, "")
}

// settingsYAML is the effective configuration, as --config would take it.
func (a *Agent) settingsYAML() (string, error) {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	shown := a.cfg
	(&shown).Flags(set)
	shown = a.cfg
	values := map[string]string{}
	set.VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	text, err := yaml.Marshal(values)
	return string(text), err
}

// manifests are all objects that Twill knows of, as an operator could apply them, and the pods of this node's ports of
// which nobody has told an object.
func (a *Agent) manifests(w *flows.World) (string, error) {
	if !a.source.Synced() {
		return "", errNotSynced
	}
	var more []*policy.Pod
	if w != nil {
		for _, owner := range slices.Sorted(maps.Keys(w.Pods)) {
			list := w.Pods[owner]
			p := list[len(list)-1] // of two sandboxes of a pod the elder waits for its DEL
			key := source.Key{Kind: "Pod", Namespace: p.Namespace, Name: p.Pod}
			if p.IfName == "eth0" && a.source.Get(key) == nil {
				more = append(more, &policy.Pod{Namespace: p.Namespace, Name: p.Pod, UID: p.UID, Addresses: p.Addresses})
			}
		}
	}
	return source.ManifestsOf(a.source, more, time.Now())
}

// hostFacts are the sysctls that decide whether the host forwards, and the kernel.
func hostFacts() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s\n", kernelRelease())
	for _, name := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/all/disable_ipv6", "net/netfilter/nf_conntrack_max",
	} {
		text, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&b, "%s = %s\n", strings.ReplaceAll(name, "/", "."), strings.TrimSpace(string(text)))
	}
	return b.String()
}
