package source

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// witness hears all that a source tells: its changes and its log lines.
type witness struct {
	t    testing.TB
	log  *logrus.Logger
	kick chan struct{}

	mu      sync.Mutex
	changes []string
	lines   []string
}

func newWitness(t testing.TB) *witness {
	w := &witness{t: t, log: silent(), kick: make(chan struct{}, 1)}
	w.log.AddHook(w)
	return w
}

// Levels implements logrus.Hook.
func (w *witness) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (w *witness) Fire(e *logrus.Entry) error {
	w.mu.Lock()
	w.lines = append(w.lines, e.Level.String()+" "+e.Message)
	w.mu.Unlock()
	w.nudge()
	return nil
}

func (w *witness) onChange(k Key) {
	w.mu.Lock()
	w.changes = append(w.changes, k.String())
	w.mu.Unlock()
	w.nudge()
}

func (w *witness) nudge() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// heard returns the changes told since it was last asked.
func (w *witness) heard() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	changes := w.changes
	w.changes = nil
	return changes
}

// until waits for a change or log line after which what() holds.
func (w *witness) until(want string, what func() bool) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for !what() {
		select {
		case <-w.kick:
		case <-deadline:
			w.t.Fatalf("waited in vain until %s; log:\n%s", want, strings.Join(w.lines, "\n"))
		}
	}
}

// says waits until the source describes itself so.
func (w *witness) says(s Source, want string) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		got := describe(s)
		if got == want {
			return
		}
		select {
		case <-w.kick:
		case <-deadline:
			w.t.Fatalf("the source does not get to say what is wanted (-want +got):\n%s", cmp.Diff(want, got))
		}
	}
}

func apiNode(name, cidr, address string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"a": strings.Repeat("long", 100)},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
		Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}, {Type: corev1.NodeHostName, Address: name}},
			Images:    []corev1.ContainerImage{{Names: []string{"registry.example/pause:3.10"}, SizeBytes: 1}},
		},
	}
}

// watching is a running source at a server that has Nodes a and b.
func watching(t *testing.T) (*apiServer, *API, *witness) {
	t.Helper()
	server, w := newAPIServer(t), newWitness(t)
	server.set(apiNode("a", "10.244.1.0/24", "198.51.100.1"))
	server.set(apiNode("b", "10.244.2.0/24", "198.51.100.2"))
	a := connected(t, server, w)
	w.until("it is synced", a.Synced)
	w.until("it is alive", func() bool { return a.Alive() == nil })
	if d := cmp.Diff("node a [10.244.1.0/24] [198.51.100.1]\nnode b [10.244.2.0/24] [198.51.100.2]\n", describe(a)); d != "" {
		t.Fatal(d)
	}
	w.heard()
	return server, a, w
}

func connected(t *testing.T, server *apiServer, w *witness) *API {
	t.Helper()
	a, err := NewAPI(APIConfig{Kubeconfig: server.kubeconfig(), NodeName: "a", Without: ServiceKindNames(), Log: w.log, OnChange: w.onChange})
	if err != nil {
		t.Fatal(err)
	}
	running(t, a)
	return a
}

func TestNodesOfTheAPIAreFollowed(t *testing.T) {
	t.Parallel()
	server, a, w := watching(t)
	heartbeat := apiNode("a", "10.244.1.0/24", "198.51.100.1")
	heartbeat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	server.set(heartbeat)
	server.set(apiNode("b", "10.244.2.0/24", "198.51.100.22"))
	server.set(apiNode("c", "10.244.3.0/33", "198.51.100.3"))
	w.says(a, `node a [10.244.1.0/24] [198.51.100.1]
node b [10.244.2.0/24] [198.51.100.22]
node c [] [198.51.100.3]
Node/c: spec.podCIDRs[0] "10.244.3.0/33" is not a CIDR such as 10.244.1.0/24 or 2001:db8:1::/64; it is not used. A podCIDR cannot be changed: correct --cluster-cidr of the controller manager, delete Node c and let its kubelet register it anew.
`)
	server.remove("a")
	server.remove("c")
	w.says(a, "node b [10.244.2.0/24] [198.51.100.22]\n")
	w.until("the last change was told", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Contains(w.changes, "Node/a") && len(w.changes) == 4
	})
	if d := cmp.Diff([]string{"Node/b", "Node/c", "Node/a", "Node/c"}, w.heard()); d != "" {
		t.Errorf("a heartbeat is no change, everything else is (-want +got):\n%s", d)
	}
}

func TestAServerAwayBeforeTheFirstListMeansNotSynced(t *testing.T) {
	t.Parallel()
	server, w := newAPIServer(t), newWitness(t)
	server.set(apiNode("a", "10.244.1.0/24", "198.51.100.1"))
	server.stop()
	a := connected(t, server, w)
	w.until("the failure was seen", func() bool { return strings.Contains(fmt.Sprint(a.Alive()), "connection refused") })
	// All watches die with the server; whichever notices first is named.
	want := regexp.MustCompile(`^watch of [A-Z][A-Za-z]+ in the Kubernetes API is dead since \S+Z \(last established: never\): .*connection refused$`)
	if err := a.Alive(); !want.MatchString(err.Error()) {
		t.Errorf("Alive() = %v, want %s", err, want)
	}
	if a.Synced() {
		t.Error("it is synced and has never read a list")
	}
	server.start()
	w.until("it is synced", a.Synced)
	w.until("it is alive", func() bool { return a.Alive() == nil })
	w.says(a, "node a [10.244.1.0/24] [198.51.100.1]\n")
}

func TestAServerThatGoesAwayTakesNothingWithIt(t *testing.T) {
	t.Parallel()
	server, a, w := watching(t)
	// A watch that has brought something is one that client-go silently tries to take up again.
	server.set(apiNode("b", "10.244.2.0/24", "198.51.100.22"))
	w.says(a, "node a [10.244.1.0/24] [198.51.100.1]\nnode b [10.244.2.0/24] [198.51.100.22]\n")
	w.until("that was told", func() bool { return len(w.heard()) > 0 })
	server.stop()
	w.until("the loss was seen", func() bool { return a.Alive() != nil })
	// All watches die with the server; whichever notices first is named.
	want := regexp.MustCompile(`^watch of [A-Z][A-Za-z]+ in the Kubernetes API is dead since \S+Z \(last established: 20\S+Z\): .`)
	if err := a.Alive(); err == nil || !want.MatchString(err.Error()) {
		t.Errorf("Alive() = %v, want %s", err, want)
	}
	if changes := w.heard(); len(changes) > 0 || len(a.Nodes()) != 2 || !a.Synced() {
		t.Errorf("changes = %v, nodes = %v, synced = %v; want everything as it was", changes, a.Nodes(), a.Synced())
	}
	server.remove("a")
	server.set(apiNode("c", "10.244.3.0/24", "198.51.100.3"))
	server.start()
	w.says(a, "node b [10.244.2.0/24] [198.51.100.22]\nnode c [10.244.3.0/24] [198.51.100.3]\n")
	w.until("it is alive", func() bool { return a.Alive() == nil })
}

func TestAServerWhoseDataWasRestoredIsReadAnew(t *testing.T) {
	t.Parallel()
	server, a, w := watching(t)
	server.remove("a")
	server.set(apiNode("b", "10.244.2.0/24", "198.51.100.22"))
	server.set(apiNode("c", "10.244.3.0/24", "198.51.100.3"))
	w.says(a, "node b [10.244.2.0/24] [198.51.100.22]\nnode c [10.244.3.0/24] [198.51.100.3]\n")
	server.restore(2)
	w.says(a, "node a [10.244.1.0/24] [198.51.100.1]\nnode b [10.244.2.0/24] [198.51.100.2]\n")
	w.until("it is alive", func() bool { return a.Alive() == nil })
	// And it is followed from there.
	server.set(apiNode("d", "10.244.4.0/24", "198.51.100.4"))
	w.says(a, "node a [10.244.1.0/24] [198.51.100.1]\nnode b [10.244.2.0/24] [198.51.100.2]\nnode d [10.244.4.0/24] [198.51.100.4]\n")
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := "warning The Kubernetes API has older data than it had: etcd was restored; reading everything anew"; !slices.Contains(w.lines, want) {
		t.Errorf("the log does not say %q:\n%s", want, strings.Join(w.lines, "\n"))
	}
}

func TestAWatchThatIsForbiddenIsDeadThoughListsSucceed(t *testing.T) {
	t.Parallel()
	server, a, w := watching(t)
	server.refuse("watch")
	w.until("the loss was seen", func() bool { return a.Alive() != nil })
	if err := a.Alive(); err == nil || !strings.Contains(err.Error(), "the ServiceAccount may not watch") {
		t.Errorf("Alive() = %v, want the words of the server", err)
	}
	server.refuse("nothing")
	server.remove("a")
	w.says(a, "node b [10.244.2.0/24] [198.51.100.2]\n")
	w.until("it is alive", func() bool { return a.Alive() == nil })
}

func TestAnEventReachesTheAPIAndRepetitionsAreCounted(t *testing.T) {
	t.Parallel()
	server, a, _ := watching(t)
	sent := func(n int) []string {
		deadline := time.After(30 * time.Second)
		for {
			server.mu.Lock()
			changed := server.changed
			server.mu.Unlock()
			if _, events := server.seen(); len(events) >= n {
				return events
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatal("the Event does not arrive")
			}
		}
	}
	about := Ref{Key{Kind: "Node", Name: "b"}, "some-uid"}
	a.Event(about, EventWarning, "PodCIDRRefused", "Node a has it.")
	sent(1)
	a.Event(about, EventWarning, "PodCIDRRefused", "Node a has it.")
	want := []string{
		`POST /api/v1/namespaces/default/events about Node b (b) by twill on a: Warning PodCIDRRefused "Node a has it.", 1 times`,
		`PATCH /api/v1/namespaces/default/events about   () by  on :   "Node a has it.", 2 times`,
	}
	if d := cmp.Diff(want, sent(2)); d != "" {
		t.Error(d)
	}
}

func TestTheServerIsAskedForProtobufAndItsVersion(t *testing.T) {
	t.Parallel()
	server, a, _ := watching(t)
	version, err := a.Version(context.Background())
	if version != "v1.34.1" || err != nil {
		t.Errorf("Version() = %q, %v", version, err)
	}
	requests, _ := server.seen()
	if want := "list /api/v1/nodes application/vnd.kubernetes.protobuf,application/json"; requests[0] != want {
		t.Errorf("the first request was %q, want %q", requests[0], want)
	}
	server.stop()
	if _, err := a.Version(context.Background()); err == nil || !strings.Contains(err.Error(), server.address) {
		t.Errorf("Version() without a server = %v, want its address", err)
	}
}

func TestOnlyWhatIsReadOfANodeStaysInMemory(t *testing.T) {
	t.Parallel()
	_, a, _ := watching(t)
	stored, _, err := a.informers[0].GetStore().GetByKey("a")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	for _, unread := range []string{"managedFields", "annotations", "images"} {
		if strings.Contains(string(text), unread) {
			t.Errorf("%s are kept: %s", unread, text)
		}
	}
	if !strings.Contains(string(text), "198.51.100.1") {
		t.Errorf("the address is not kept: %s", text)
	}
}

func TestStrippingANodeDoesNotChangeWhatItConvertsTo(t *testing.T) {
	n := apiNode("a", "10.244.1.0/24", "198.51.100.1")
	n.UID, n.CreationTimestamp = "1", metav1.Unix(1, 0)
	full, _ := Convert(n)
	stripped, _ := Convert(stripNode(n).(*corev1.Node))
	if d := cmp.Diff(describeNode(full), describeNode(stripped)); d != "" {
		t.Error(d)
	}
	if want := "node a [10.244.1.0/24] [198.51.100.1] uid 1 created 1970-01-01T00:00:01Z"; describeNode(full) != want {
		t.Errorf("Convert = %s, want %s", describeNode(full), want)
	}
}

func TestAccessToTheAPIThatCannotBeConfiguredNamesTheFile(t *testing.T) {
	_, err := NewAPI(APIConfig{Kubeconfig: "/nowhere/kubeconfig", Log: silent()})
	if err == nil || !strings.HasPrefix(err.Error(), "access to the Kubernetes API from kubeconfig /nowhere/kubeconfig: ") {
		t.Errorf("NewAPI without its kubeconfig: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err = NewAPI(APIConfig{Log: silent()})
	if err == nil || !strings.Contains(err.Error(), "set a kubeconfig outside of a cluster") {
		t.Errorf("NewAPI outside of a cluster: %v", err)
	}
}

func TestTheServerOfAKubeconfigCanBeOverridden(t *testing.T) {
	server := newAPIServer(t)
	other := newAPIServer(t)
	other.stop()
	a, err := NewAPI(APIConfig{Kubeconfig: other.kubeconfig(), Server: "http://" + server.address, Without: ServiceKindNames(), Log: silent()})
	if err != nil {
		t.Fatal(err)
	}
	if version, err := a.Version(context.Background()); version != "v1.34.1" || err != nil {
		t.Errorf("Version() = %q, %v", version, err)
	}
}

func TestNeitherOurOwnEndNorAnExpiredVersionIsALossOfTheAPI(t *testing.T) {
	link := newContact("Node", silent())
	link.works()
	ctx, cancel := context.WithCancel(context.Background())
	link.broken(ctx, apierrors.NewResourceExpired("too old resource version"))
	if err := link.alive(); err != nil {
		t.Errorf("an expired version: %v", err)
	}
	cancel()
	link.broken(ctx, ctx.Err())
	if err := link.alive(); err != nil {
		t.Errorf("our own end: %v", err)
	}
}
