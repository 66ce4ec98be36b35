package inspect

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twill-net/twill/flows"
	"github.com/twill-net/twill/ovs"
)

// Names of the files in a report. A report holds more; these are what the offline commands read.
const (
	FileMeta   = "meta.json"
	FileStatus = "status.json"
	FileWorld  = "world.json"
	// FileObjects has what policies depend on, see package preview.
	FileObjects = "objects.json"
	FileFlows   = "flows.txt"
	FileGroups  = "groups.txt"
	// FileDrops is what Drops told when the report was made: the last packets are in no dump.
	FileDrops = "drops.json"
	// FileManifests has all objects, in a directory of its own for --manifests.
	FileManifests = "manifests/cluster.yaml"
)

// archiveDir is the one directory of a report.
const archiveDir = "twill-report"

// cutHere begins the last line of a file that is not whole.
const cutHere = "... cut here: "

// maxFile and maxArchive bound a report, in bytes before compression.
const (
	maxFile    = 32 << 20
	maxArchive = 128 << 20
)

// Meta says what a report is of.
type Meta struct {
	Format  int       `json:"format"`
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Bridge  string    `json:"bridge"`
	At      time.Time `json:"at"`
	// Missing says of each part that could not be had why not.
	Missing map[string]string `json:"missing,omitempty"`
}

// formatNow is the format of reports that this version writes and reads.
const formatNow = 1

// File is one file of a report.
type File struct {
	Name string
	Data []byte
}

// WriteArchive writes a report as tar.gz. A file above the bound is cut, and says so at its end.
func WriteArchive(w io.Writer, meta Meta, files []File) error {
	meta.Format = formatNow
	head, err := json.MarshalIndent(meta, "", "  ")
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	total := 0
	for _, f := range append([]File{{FileMeta, head}}, files...) {
		limit := min(maxFile, maxArchive-total)
		if len(f.Data) > limit {
			note := fmt.Sprintf("\n"+cutHere+"%d of %d bytes\n", limit, len(f.Data))
			f.Data = append(slices.Clip(f.Data[:max(0, limit-len(note))]), note...)
		}
		total += len(f.Data)
		if err := out.WriteHeader(&tar.Header{Name: path.Join(archiveDir, f.Name), Mode: 0o600, Size: int64(len(f.Data)), ModTime: meta.At}); err != nil {
			return err
		}
		if _, err := out.Write(f.Data); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), zip.Close())
}

// Archive is a report that was read.
type Archive struct {
	Meta  Meta
	Files map[string][]byte
}

// ReadArchive reads what WriteArchive wrote. The error says what is missing or broken.
func ReadArchive(r io.Reader) (*Archive, error) {
	zip, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("this is no report of `twill report`: %w", err)
	}
	a := &Archive{Files: map[string][]byte{}}
	in := tar.NewReader(io.LimitReader(zip, maxArchive+(1<<20)))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the report is cut short or damaged: %w; have it written again", err)
		}
		name, ok := strings.CutPrefix(path.Clean(h.Name), archiveDir+"/")
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if a.Files[name], err = io.ReadAll(io.LimitReader(in, maxFile)); err != nil {
			return nil, fmt.Errorf("the report is cut short or damaged at %s: %w; have it written again", name, err)
		}
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(zip, 1<<20)); err != nil { // its checksum is at the end
		return nil, fmt.Errorf("the report is cut short or damaged at its end: %w; have it written again", err)
	}
	head, ok := a.Files[FileMeta]
	if !ok {
		return nil, fmt.Errorf("this is no report of `twill report`: it has no %s", FileMeta)
	}
	if err := json.Unmarshal(head, &a.Meta); err != nil {
		return nil, fmt.Errorf("%s of the report: %w", FileMeta, err)
	}
	if a.Meta.Format != formatNow {
		return nil, fmt.Errorf("the report has format %d and this twill reads %d: use the twill that wrote it (%s)", a.Meta.Format, formatNow, cmp.Or(a.Meta.Version, "unknown"))
	}
	return a, nil
}

// part is one file of a report, or why it is missing.
func (a *Archive) part(name string) ([]byte, error) {
	if data, ok := a.Files[name]; ok {
		return data, nil
	}
	return nil, fmt.Errorf("the report of node %s has no %s: %s", a.Meta.Node, name, cmp.Or(a.Meta.Missing[name], "it was not written"))
}

// Status is the answer of `twill status` at the time of the report, as JSON.
func (a *Archive) Status() ([]byte, error) { return a.part(FileStatus) }

// Objects are the cluster's Pods, Namespaces, Nodes and policies at the time of the report, as JSON.
func (a *Archive) Objects() ([]byte, error) { return a.part(FileObjects) }

// Subject is the node as the report has it. Packets are traced on a bridge of the same flows, see Simulate.
func (a *Archive) Subject(x ovs.Executor) (*Subject, error) {
	data, err := a.part(FileWorld)
	if err != nil {
		return nil, err
	}
	w := &flows.World{}
	if err := json.Unmarshal(data, w); err != nil {
		return nil, fmt.Errorf("%s of the report: %w; use the twill that wrote it (%s)", FileWorld, err, a.Meta.Version)
	}
	dump, err := a.part(FileFlows)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(dump), cutHere) {
		return nil, errors.New("the flow dump of the report is cut short: it was larger than a report may be; use --dump with a whole one")
	}
	installed, err := ovs.ParseFlows(strings.NewReader(string(dump)))
	if err != nil {
		return nil, err
	}
	if err := numbered(installed); err != nil {
		return nil, err
	}
	if len(installed) == 0 {
		return nil, errNoFlow
	}
	s := saved(a.Meta.Node, a.Meta.Bridge, w, installed, string(a.Files[FileGroups]), x)
	s.dropped, err = a.dropped()
	return s, err
}

// dropped are the last packets that were dropped when the report was made. One of an agent that told none has none.
func (a *Archive) dropped() (map[dropKey][]DroppedPacket, error) {
	data, ok := a.Files[FileDrops]
	if !ok {
		return nil, nil
	}
	var list []Drop
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s of the report: %w; use the twill that wrote it (%s)", FileDrops, err, a.Meta.Version)
	}
	out := map[dropKey][]DroppedPacket{}
	for _, d := range list {
		if len(d.Last) > 0 {
			out[dropKey{d.Reason, d.Owner}] = d.Last
		}
	}
	return out, nil
}

// errNoFlow is for a dump of something else.
var errNoFlow = errors.New("the flow dump holds not one flow: is it the output of `ovs-ofctl -O OpenFlow15 dump-flows`, and complete?")

// errNoGroups is for a dump whose flows lead to groups that nobody has saved.
var errNoGroups = errors.New("the flows lead to groups, and no dump of those is there: " + remedyGroups)

// saved is a node of which only a World and what the bridge held are left.
func saved(node, bridge string, w *flows.World, installed []ovs.Installed, groups string, x ovs.Executor) *Subject {
	d := flows.NewDesired()
	wanted := map[flows.Owner][]flows.Flow{}
	var failed error
	for _, o := range w.Owners() {
		fs, err := flows.Compile(w, o)
		failed = cmp.Or(failed, err)
		wanted[o] = fs
	}
	leads := func(f ovs.Installed) bool { return strings.Contains(f.Actions, "group:") }
	var noGroups error
	if !strings.Contains(groups, "group_id=") && slices.ContainsFunc(installed, leads) {
		noGroups = errNoGroups
	}
	_, conflict := d.Replace(wanted) // the live agent has the same, and says so in its status
	return &Subject{
		Node: node, Bridge: bridge,
		View:      func(read func(*flows.Desired, *flows.World)) { read(d, w) },
		Installed: func(context.Context) ([]ovs.Installed, error) { return installed, nil },
		Groups:    func(context.Context) (string, error) { return groups, noGroups },
		Tracer: func(ctx context.Context) (Tracer, error) {
			if noGroups != nil {
				return nil, fmt.Errorf("a packet cannot be traced: %w", noGroups)
			}
			return Simulate(ctx, x, bridge, installed, groups)
		},
		Behind: func() error { return errors.Join(failed, conflict) },
	}
}

// namedTable is where an action leads to a table.
var namedTable = regexp.MustCompile(`(goto_table:|table=|resubmit\(,)("[^"]+"|[a-z][a-z-]*)`)

// numbered gives tables that a dump names (--names) their numbers, also in actions.
func numbered(list []ovs.Installed) error {
	number := map[string]flows.Table{}
	for _, t := range flows.Tables() {
		number[t.String()] = t
	}
	for i, f := range list {
		if f.TableName != "" {
			t, known := number[f.TableName]
			if !known {
				return fmt.Errorf("the flow dump has a table %q, which this twill does not know: use the twill of the node's agent", f.TableName)
			}
			list[i].Table, list[i].TableName = uint8(t), ""
		}
		list[i].Actions = namedTable.ReplaceAllStringFunc(f.Actions, func(text string) string {
			m := namedTable.FindStringSubmatch(text)
			if t, known := number[strings.Trim(m[2], `"`)]; known {
				return m[1] + fmt.Sprint(uint8(t))
			}
			return text // shown as it stands, as something that is altered
		})
	}
	return nil
}
