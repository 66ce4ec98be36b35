// Package source tells what Kubernetes says, from one of two places behind one interface: the
// Kubernetes API (NewAPI), or a directory of ordinary manifests (NewManifests), such as
// `kubectl get nodes -o yaml` prints. No other package of the agent knows Kubernetes' own types.
//
// # Workflow
//
// Make one, call Run in a goroutine of its own, wait until Synced, read Nodes. Config.OnChange is
// called for whatever changes from then on (and before, while the first list is being read), so a
// reader marks its work as due there and reads the present state when it gets to it:
//
//	src, err := source.NewManifests(source.ManifestsConfig{Dir: dir, Log: log, OnChange: kick})
//	go src.Run(ctx)
//
// # What is promised
//
//   - Nothing is lost because a source is away: an API server that does not answer, a directory that
//     vanished, a file that became unreadable leave everything as it was. Alive and Problems tell.
//   - What cannot be used is named: object, field, value and remedy. The rest of the object is used.
//   - OnChange is called only if something that Twill reads has changed. A kubelet's heartbeat is none.
//
// # Gotchas
//
//   - Write manifests elsewhere and rename them into the directory. A file that is written in place is
//     read as far as it got once writing pauses for 20 ms; only a file of size 0 is known to be unfinished.
//   - Entries of the directory may be symbolic links, as in a mounted ConfigMap, but a target outside
//     of the directory that changes while the link stays is not noticed.
//   - A Node of a manifest without creationTimestamp counts as older than any that has one.
//
// # Another kind
//
// Add a line to the table in kinds.go and an accessor like Nodes. Both sources follow it from there.
package source

import (
	"context"
	"time"

	"github.com/twill-net/twill/flows"
)

// Key names one Kubernetes object.
type Key struct {
	// Kind is as in the manifest: "Node". A file of the manifest directory has the kind "File".
	Kind string
	// Namespace is empty for kinds that have none.
	Namespace string
	Name      string
}

// fileKind is the Kind of a file of the manifest directory.
const fileKind = "File"

// String is kind/namespace/name or kind/name, and "synced" for the zero Key, as OnChange has it.
func (k Key) String() string {
	switch {
	case k == Key{}:
		return "synced"
	case k.Namespace == "":
		return k.Kind + "/" + k.Name
	}
	return k.Kind + "/" + k.Namespace + "/" + k.Name
}

// Ref names the object that an Event is about.
type Ref struct {
	Key
	// UID is its incarnation; empty if not known.
	UID string
}

// Types of Events, as Kubernetes has them.
const (
	EventNormal  = "Normal"
	EventWarning = "Warning"
)

// Problem is an object, a part of one, or a file that could not be used.
type Problem struct {
	Key
	// Where is file:line for what came from a manifest, else empty.
	Where string
	// Reason is one sentence with field, value and remedy.
	Reason string
}

// String is what an operator reads.
func (p Problem) String() string {
	switch {
	case p.Where == "":
		return p.Key.String() + ": " + p.Reason
	case p.Kind == fileKind:
		return p.Where + ": " + p.Reason
	}
	return p.Where + ": " + p.Key.String() + ": " + p.Reason
}

// OnChange is told which object appeared, changed or went, or which has other Problems than before;
// and, by the zero Key, that the source has become Synced.
// It is called from the goroutine that follows the source, with no lock held, and must not block.
type OnChange func(Key)

// Source is what Kubernetes says. All methods are safe for concurrent use.
type Source interface {
	// Run follows the source until ctx ends, then returns nil. An error means that it cannot be followed
	// at all (such as a directory that is missing at start). It may be called once.
	Run(ctx context.Context) error
	// Synced says that a full list of every kind has been read once. It never becomes false again. Until
	// it is true, what is missing from Nodes means nothing.
	Synced() bool
	// Nodes are all Nodes sorted by name, with what of them is usable. Do not modify their slices.
	Nodes() []flows.Node
	// Services are all Services and EndpointSlices; what has not changed since the last call is shared with what that
	// returned. Do not modify them.
	Services() ServiceKinds
	// Get is what is usable of one object: *policy.Pod, *policy.Namespace, *policy.Policy or flows.Node by the
	// kind of the key; nil if nothing. It must not be changed.
	Get(Key) any
	// Keys are those of all usable objects of a kind, sorted.
	Keys(kind string) []Key
	// Problems are all that there are now, sorted.
	Problems() []Problem
	// ProblemsOf are those of one object.
	ProblemsOf(Key) []Problem
	// Alive is nil while every watcher works; else it names what is dead, since when and why.
	Alive() error
	// Skew is how far this machine's clock is ahead of that of the source, at least; negative when it is behind, 0 when they
	// may agree. known is false when nobody has told.
	Skew() (skew time.Duration, known bool)
	// Event records something about an object where an operator looks for it. It does not block.
	Event(about Ref, eventType, reason, message string)
}

var (
	_ Source = (*API)(nil)
	_ Source = (*Manifests)(nil)
)
