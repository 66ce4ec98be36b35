package source

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// content is what a manifest file says.
type content struct {
	objects []definition
	// ignored counts objects of kinds that are not followed.
	ignored int
	// lost says that one of them is.
	lost bool
}

// definition is one object of a file.
type definition struct {
	key   Key
	where string
	entry entry
	// lost says that the object could not be decoded, and that no earlier state of it is known.
	lost bool
}

// fault is why a file cannot be used as a whole.
type fault struct {
	line   int
	reason string
}

func (f *fault) Error() string { return fmt.Sprintf("line %d: %s", f.line, f.reason) }

// document is one of the documents of a file, as JSON.
type document struct {
	line int
	json []byte
}

// decoder reads one file. An object whose fields have wrong types keeps the state it had in last.
type decoder struct {
	name  string
	kinds []kind
	last  content
	// namespace is that of objects which name none; empty means "default", as for kubectl.
	namespace string
	content
}

// decode reads the file called name. An error is always a *fault.
func decode(name string, data []byte, kinds []kind, last content) (content, error) {
	d := &decoder{name: name, kinds: kinds, last: last}
	if err := d.file(data); err != nil {
		return content{}, err
	}
	return d.content, nil
}

// file takes all objects of a file. An error is always a *fault.
func (d *decoder) file(data []byte) error {
	documents, err := split(d.name, data)
	if err != nil {
		return err
	}
	for _, doc := range documents {
		if err := d.object(doc, "", schema.GroupVersionKind{}); err != nil {
			return &fault{doc.line, err.Error()}
		}
	}
	return nil
}

// object takes one object, or all of a list. within says where in the document it stands. implied is
// the kind of an item that does not tell its own, as in a NodeList.
func (d *decoder) object(doc document, within string, implied schema.GroupVersionKind) error {
	var head struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Items      []json.RawMessage `json:"items"`
		Metadata   struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
	}
	headError := kjson.Unmarshal(doc.json, &head)
	gvk := schema.FromAPIVersionAndKind(head.APIVersion, head.Kind)
	if head.Kind == "" {
		gvk = implied
	}
	if gvk.Kind == "" {
		return fmt.Errorf("%sthis is no Kubernetes object: it needs apiVersion, kind and metadata", within)
	}
	if of, isList := strings.CutSuffix(gvk.Kind, "List"); isList {
		if headError != nil {
			return fmt.Errorf("%s%s: %w", within, gvk.Kind, headError)
		}
		item := schema.GroupVersionKind{}
		if of != "" {
			item = gvk.GroupVersion().WithKind(of)
		}
		for i, raw := range head.Items {
			if err := d.object(document{doc.line, raw}, fmt.Sprintf("%sitems[%d]: ", within, i), item); err != nil {
				return err
			}
		}
		return nil
	}
	for _, k := range d.kinds {
		if k.GroupVersionKind == gvk {
			if head.Metadata.Name == "" && headError != nil {
				return fmt.Errorf("%s%s: %w", within, k.Kind, headError)
			}
			if head.Metadata.Name == "" {
				return fmt.Errorf("%sthe %s needs a metadata.name", within, k.Kind)
			}
			key := Key{Kind: k.Kind, Name: head.Metadata.Name}
			if k.namespaced {
				key.Namespace = cmp.Or(head.Metadata.Namespace, d.namespace, metav1.NamespaceDefault)
			}
			d.define(k, key, doc, within)
			return nil
		}
	}
	d.ignored++
	return nil
}

// define adds the object of that key.
func (d *decoder) define(k kind, key Key, doc document, within string) {
	def := definition{key: key, where: fmt.Sprintf("%s:%d", d.name, doc.line)}
	o := k.make()
	err := kjson.Unmarshal(doc.json, o)
	if err == nil {
		o.SetNamespace(key.Namespace)
		def.key, def.entry = newEntry(k, o, def.where)
		d.objects = append(d.objects, def)
		return
	}
	def.lost = true
	stays := "nothing of it is known"
	for _, old := range d.last.objects {
		if old.key == key && !old.lost {
			def.entry.value, def.lost = old.entry.value, false
			stays = "its last good state stays in force"
			break
		}
	}
	def.entry.problems = []Problem{{Key: key, Where: def.where,
		Reason: fmt.Sprintf("%s%s; %s until it is corrected.", within, err, stays)}}
	d.lost = d.lost || def.lost
	d.objects = append(d.objects, def)
}

// split cuts a file into documents. Those that are empty are left out.
func split(name string, data []byte) ([]document, error) {
	if filepath.Ext(name) == ".json" {
		return splitJSON(data)
	}
	return splitYAML(data)
}

func splitJSON(data []byte) (documents []document, err error) {
	reader := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		start := reader.InputOffset()
		start += int64(len(data[start:]) - len(bytes.TrimLeft(data[start:], " \t\r\n")))
		line := 1 + bytes.Count(data[:start], []byte("\n"))
		err := reader.Decode(&raw)
		var syntax *json.SyntaxError
		switch {
		case err == io.EOF:
			return documents, nil
		case errors.As(err, &syntax):
			at := min(max(syntax.Offset, start), int64(len(data)))
			return nil, &fault{1 + bytes.Count(data[:at], []byte("\n")), "broken JSON: " + err.Error()}
		case err != nil:
			return nil, &fault{line, "broken JSON: " + err.Error()}
		}
		documents = append(documents, document{line, raw})
	}
}

func splitYAML(data []byte) (documents []document, err error) {
	line := 1
	for i, l := range bytes.Split(data, []byte("\n")) {
		if isMarker(l, "...") && !isBlank(l[3:]) {
			return nil, &fault{i + 1, fmt.Sprintf("broken YAML: nothing may stand behind the end of a document: %q", l)}
		}
	}
	for len(data) > 0 {
		text, lines, rest := cutDocument(data)
		first := line
		for _, l := range bytes.SplitAfter(text, []byte("\n")) {
			if !isBlank(l) {
				break
			}
			first++
		}
		doc, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			// The parser counts lines from the start of what it was given.
			padded := append(bytes.Repeat([]byte("\n"), line-1), text...)
			if _, again := yaml.YAMLToJSONStrict(padded); again != nil {
				err = again
			}
			return nil, yamlFault(err, first)
		}
		if string(doc) != "null" {
			documents = append(documents, document{first, doc})
		}
		line += lines
		data = rest
	}
	return documents, nil
}

// cutDocument returns the first document of data without its markers ("---", "..."), the number of
// lines up to rest, and the rest. Markers and directives leave an empty line, so that lines still count.
func cutDocument(data []byte) (text []byte, lines int, rest []byte) {
	rest = data
	blank := true
	for len(rest) > 0 {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		l := rest[:end]
		switch {
		case isMarker(l, "---") && blank, isMarker(l, "..."), blank && l[0] == '%':
			// "--- {a: b}" has content behind the marker; "... {a: b}" is no YAML.
			if l[0] == '-' {
				text = append(text, "   "...)
				text = append(text, l[3:]...)
				blank = blank && isBlank(l[3:])
			} else {
				text = append(text, '\n')
			}
			if l[0] == '.' {
				return text, lines + 1, rest[end:]
			}
		case isMarker(l, "---"):
			return text, lines, rest
		default:
			text = append(text, l...)
			blank = blank && isBlank(l)
		}
		lines++
		rest = rest[end:]
	}
	return text, lines, nil
}

func isMarker(line []byte, marker string) bool {
	rest, found := bytes.CutPrefix(line, []byte(marker))
	return found && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// isBlank says that a line has nothing but space or a comment.
func isBlank(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) == 0 || line[0] == '#'
}

// yamlFault reads the line out of an error of the YAML parser, which has it in its text only.
func yamlFault(err error, first int) *fault {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	text = strings.Join(strings.Fields(strings.TrimPrefix(text, "yaml: ")), " ")
	text = strings.TrimPrefix(text, "unmarshal errors: ")
	f := &fault{first, "broken YAML: " + text}
	if match := regexp.MustCompile(`line (\d+): `).FindStringSubmatch(text); match != nil {
		f.line, _ = strconv.Atoi(match[1])
		f.reason = "broken YAML: " + strings.Replace(text, match[0], "", 1)
	}
	return f
}
