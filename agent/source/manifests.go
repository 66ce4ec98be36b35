package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
)

const (
	// settle is how long the directory must be quiet before it is read: a file that is copied comes as
	// a burst of events, microseconds apart.
	settle = 20 * time.Millisecond
	// patience is how long events may follow one another before it is read all the same.
	patience = 500 * time.Millisecond
	// retry is how often a directory that vanished is looked for, since its parent may be gone as well
	// and then no event can come.
	retry = time.Second
)

// ManifestsConfig says where the manifests are.
type ManifestsConfig struct {
	// Dir holds *.yaml, *.yml and *.json files; subdirectories and names that start with a dot are not read.
	Dir string
	// Without are kinds of objects not to follow.
	Without []string
	Log     logrus.FieldLogger
	// OnChange may be nil.
	OnChange OnChange
}

// Manifests is the Source that follows a directory of manifests.
//
// A file is either taken as a whole or, where it is not even well-formed, not at all: then its last
// good content stays in force. Where that does not exist, because the file was broken from the start,
// the source is not Synced until the file is corrected or removed: to act on half a list would undo
// what an earlier agent did right. Of two definitions of one object, that in the file that
// sorts first is used.
type Manifests struct {
	*store
	eventRing
	dir   string
	kinds []kind
	files map[string]*file
	// links are those of them that are symbolic links.
	links map[string]bool
	// definers are the files that define an object, published the objects of a file that are in the store.
	definers  map[Key]map[string]bool
	published map[string][]Key
	synced    atomic.Bool

	health sync.Mutex
	// dead is why the directory is not followed, nil while it is.
	dead error
}

// file is one file of the directory.
type file struct {
	// sum is of the bytes last read, to parse only what has changed.
	sum [sha256.Size]byte
	// good is its last good content, nil if there was none yet.
	good *content
	// fault is what is wrong with it now.
	fault *fault
}

// NewManifests returns the Source; nothing is read before Run.
func NewManifests(config ManifestsConfig) (*Manifests, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("manifest directory %s: %w", config.Dir, err)
	}
	return &Manifests{
		store: newStore(config.Log, config.OnChange),
		dir:   dir, kinds: kinds(config.Without...), files: map[string]*file{}, links: map[string]bool{},
		definers: map[Key]map[string]bool{}, published: map[string][]Key{},
		dead: fmt.Errorf("manifest directory %s is not followed: it has not started yet", dir),
	}, nil
}

// Run implements Source.
func (m *Manifests) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("manifest directory %s cannot be watched; raise sysctl fs.inotify.max_user_instances if there are too many: %w", m.dir, err)
	}
	defer watcher.Close()
	// The parent tells when the directory itself is replaced.
	if err := watcher.Add(filepath.Dir(m.dir)); err != nil {
		return fmt.Errorf("parent of the manifest directory %s cannot be watched; create it: %w", m.dir, err)
	}
	if err := m.attach(watcher); err != nil {
		return fmt.Errorf("manifest directory %s cannot be read; create it or correct its name: %w", m.dir, err)
	}
	m.setDead(nil)
	defer func() { m.setDead(cmp.Or(ctx.Err(), errors.New("it was stopped"))) }()

	timer := time.NewTimer(retry)
	timer.Stop()
	var first time.Time // the first event that is not dealt with yet, zero for none
	replaced, lost, named := false, false, map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			if event.Name == m.dir && !event.Has(fsnotify.Chmod) {
				replaced = true
			} else if filepath.Dir(event.Name) != m.dir {
				continue
			}
			named[filepath.Base(event.Name)] = true
		case err := <-watcher.Errors:
			// Events may be lost, as at an overflow of the queue: reading everything makes up for it.
			m.log.WithError(err).Warn("Events of the manifest directory were lost; it is read anew")
			lost = true
		case <-timer.C:
			switch {
			case replaced:
				err = m.attach(watcher)
			case lost:
				err = m.read()
			default:
				err = m.readNamed(named)
			}
			m.setDead(err)
			first, replaced, lost, named = time.Time{}, err != nil, false, map[string]bool{}
			if err != nil {
				timer.Reset(retry)
			}
			continue
		}
		if first.IsZero() {
			first = time.Now()
		}
		timer.Reset(min(settle, max(0, patience-time.Since(first))))
	}
}

// attach watches what is now under the name of the directory, and reads it.
func (m *Manifests) attach(watcher *fsnotify.Watcher) error {
	// Else what had the name before would be watched as well. The error says that it was not watched.
	_ = watcher.Remove(m.dir)
	if err := watcher.Add(m.dir); err != nil {
		return err
	}
	return m.read()
}

// read brings the store in step with the directory. An error is about the directory as a whole.
func (m *Manifests) read() error { return m.readNamed(nil) }

// readNamed is read for events about these names: other files say what they said, or there would have been
// an event, so that they cost nothing, however many there are. Links are always read, since where they lead nothing is
// watched. nil means every name.
func (m *Manifests) readNamed(named map[string]bool) error {
	names := map[string]bool{}
	if named == nil {
		list, err := os.ReadDir(m.dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			names[e.Name()] = true
		}
		for name := range m.files {
			names[name] = true // there or gone
		}
	} else {
		if _, err := os.Stat(m.dir); err != nil {
			return err
		}
		maps.Copy(names, named)
		maps.Copy(names, m.links)
	}
	var changed []string
	for name := range names {
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		f := m.files[name]
		if f == nil {
			f = &file{}
		}
		there := m.readFile(name, f)
		if !there && m.files[name] == nil {
			continue
		}
		changed = append(changed, name)
		delete(m.files, name)
		delete(m.links, name)
		if there {
			m.files[name] = f
			if info, err := os.Lstat(filepath.Join(m.dir, name)); err != nil || !info.Mode().IsRegular() {
				m.links[name] = true // or it is going: to be looked at again
			}
		}
	}
	m.publish(changed)
	return nil
}

// readFile brings f in step with the file, and says whether there is one.
func (m *Manifests) readFile(name string, f *file) bool {
	path := filepath.Join(m.dir, name)
	// A pipe would block us, and a link that dangles is no file.
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return false
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil:
		f.sum = [sha256.Size]byte{}
		f.fault = &fault{1, "cannot be read: " + err.Error()}
	default:
		sum := sha256.Sum256(data)
		if sum == f.sum {
			return true
		}
		f.sum = sum
		m.load(name, data, f)
	}
	return true
}

// load takes what a file now says.
func (m *Manifests) load(name string, data []byte, f *file) {
	var last content
	if f.good != nil {
		last = *f.good
	}
	f.fault = nil
	if len(data) == 0 && len(last.objects) > 0 {
		// A shell that redirects into the file has emptied it before the command even starts.
		f.fault = &fault{1, "is empty; delete it if its objects shall go"}
		return
	}
	good, err := decode(name, data, m.kinds, last)
	if errors.As(err, &f.fault) {
		return
	}
	f.good = &good
	m.log.WithFields(logrus.Fields{"file": name, "objects": len(good.objects), "ignored": good.ignored}).Debug("Read manifests")
}

// publish puts what some files say, and said before, into the store: objects that only other files define are
// as they were. So one file more costs what is in it, whatever the others hold.
func (m *Manifests) publish(files []string) {
	touched := map[Key]bool{}
	for _, name := range files {
		touched[Key{Kind: fileKind, Name: name}] = true
		for _, key := range m.published[name] {
			touched[key] = true
			delete(m.definers[key], name)
		}
		delete(m.published, name)
		f := m.files[name]
		if f == nil || f.good == nil {
			continue
		}
		keys := make([]Key, 0, len(f.good.objects))
		for _, d := range f.good.objects {
			touched[d.key] = true
			keys = append(keys, d.key)
			if m.definers[d.key] == nil {
				m.definers[d.key] = map[string]bool{}
			}
			m.definers[d.key][name] = true
		}
		m.published[name] = keys
	}
	// Of objects in these files each is looked up at once, not searched for.
	where := map[string]map[Key][]definition{}
	for key := range touched {
		for name := range m.definers[key] {
			where[name] = nil
		}
	}
	for name := range where {
		index := map[Key][]definition{}
		for _, d := range m.files[name].good.objects {
			if touched[d.key] {
				index[d.key] = append(index[d.key], d)
			}
		}
		where[name] = index
	}
	for _, key := range slices.SortedFunc(maps.Keys(touched), compareKeys) {
		m.set(key, m.entryOf(key, where))
		if len(m.definers[key]) == 0 {
			delete(m.definers, key)
		}
	}
	if !m.Synced() && m.complete() {
		m.synced.Store(true)
		m.onChange(Key{})
	}
}

// entryOf is what all files together say of an object, or what is wrong with a file.
func (m *Manifests) entryOf(key Key, where map[string]map[Key][]definition) (e entry) {
	if key.Kind == fileKind {
		f := m.files[key.Name]
		if f == nil || f.fault == nil {
			return entry{}
		}
		stays := "its last good content stays in force"
		if f.good == nil {
			stays = "there is no last good content, so the list is incomplete"
		}
		return entry{problems: []Problem{{Key: key, Where: fmt.Sprintf("%s:%d", key.Name, f.fault.line),
			Reason: fmt.Sprintf("%s; %s until the file is corrected or removed.", f.fault.reason, stays)}}}
	}
	first := ""
	for _, name := range slices.Sorted(maps.Keys(m.definers[key])) {
		for _, d := range where[name][key] {
			if first == "" {
				first, e = d.where, d.entry
				continue
			}
			e.problems = append(slices.Clip(e.problems), Problem{Key: key, Where: d.where,
				Reason: fmt.Sprintf("it is defined at %s already, and that is used; remove one of the two.", first)})
		}
	}
	return e
}

// complete is true when every file and every object of it has been read at least once.
func (m *Manifests) complete() bool {
	for _, f := range m.files {
		if f.good == nil && f.fault != nil {
			return false
		}
		if f.good != nil && f.good.lost {
			return false
		}
	}
	return true
}

// Synced implements Source.
func (m *Manifests) Synced() bool { return m.synced.Load() }

// Alive implements Source.
func (m *Manifests) Alive() error {
	m.health.Lock()
	defer m.health.Unlock()
	return m.dead
}

// Skew implements Source: a directory has no clock.
func (m *Manifests) Skew() (time.Duration, bool) { return 0, false }

// setDead notes why the directory is not followed, nil if it is.
func (m *Manifests) setDead(err error) {
	m.health.Lock()
	defer m.health.Unlock()
	switch {
	case err == nil && m.dead != nil:
		m.log.WithField("dir", m.dir).Info("Following the manifest directory")
		m.dead = nil
	case err != nil && m.dead == nil:
		m.dead = fmt.Errorf("manifest directory %s is not followed since %s, and what is known stays in force; put it back: %w",
			m.dir, time.Now().UTC().Format(time.RFC3339), err)
		if !errors.Is(err, context.Canceled) { // the agent ends: nothing to worry about
			m.log.Warn(m.dead)
		}
	}
}

// Event implements Source: a log line, and one of Events.
func (m *Manifests) Event(about Ref, eventType, reason, message string) {
	e := Event{Time: time.Now(), About: about, Type: eventType, Reason: reason, Message: message}
	m.add(e)
	logEvent(m.log, e)
}
