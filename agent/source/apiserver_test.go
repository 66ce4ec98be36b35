package source

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	restwatch "k8s.io/client-go/rest/watch"
)

// apiServer speaks as much of the Kubernetes API over real HTTP as the source uses: list and watch of
// Nodes in protobuf, Events, version. It can go away and come back at the same address.
type apiServer struct {
	t       testing.TB
	address string
	codecs  serializer.CodecFactory

	mu       sync.Mutex
	http     *httptest.Server
	version  int
	nodes    map[string]*corev1.Node
	history  []watch.Event // history[i] made version i+1
	changed  chan struct{} // closed at the next event or cut
	cuts     int
	deny     string // "list" or "watch"
	ahead    time.Duration
	requests []string
	events   []string
}

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := addToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	s := &apiServer{t: t, address: listener.Addr().String(), codecs: serializer.NewCodecFactory(scheme),
		nodes: map[string]*corev1.Node{}, changed: make(chan struct{})}
	s.serve(listener)
	t.Cleanup(s.stop)
	return s
}

func (s *apiServer) serve(listener net.Listener) {
	server := httptest.NewUnstartedServer(s)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	s.mu.Lock()
	s.http = server
	s.mu.Unlock()
}

// stop makes the server go away, with all its connections.
func (s *apiServer) stop() {
	s.mu.Lock()
	server := s.http
	s.http = nil
	s.mu.Unlock()
	if server != nil {
		server.Listener.Close()
		server.CloseClientConnections()
		server.Close()
	}
}

// start brings it back.
func (s *apiServer) start() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.serve(listener)
}

// kubeconfig is the path of one that leads here.
func (s *apiServer) kubeconfig() string {
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	write(s.t, path, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`, s.address))
	return path
}

// set adds or changes a Node.
func (s *apiServer) set(n *corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := watch.Added
	if s.nodes[n.Name] != nil {
		kind = watch.Modified
	}
	s.version++
	n = n.DeepCopy()
	n.ResourceVersion = strconv.Itoa(s.version)
	s.nodes[n.Name] = n
	s.publish(watch.Event{Type: kind, Object: n})
}

func (s *apiServer) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	n := s.nodes[name].DeepCopy()
	n.ResourceVersion = strconv.Itoa(s.version)
	delete(s.nodes, name)
	s.publish(watch.Event{Type: watch.Deleted, Object: n})
}

// restore makes the server what it was at a version, as etcd restored from a backup does. Its watches end.
func (s *apiServer) restore(version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	history := s.history[:version]
	s.version, s.history, s.nodes = version, nil, map[string]*corev1.Node{}
	for _, e := range history {
		n := e.Object.(*corev1.Node)
		if s.nodes[n.Name] = n; e.Type == watch.Deleted {
			delete(s.nodes, n.Name)
		}
	}
	s.history = slices.Clone(history)
	s.cuts++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *apiServer) publish(e watch.Event) {
	s.history = append(s.history, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

// refuse makes it forbid a verb from now on, and cuts the watches that there are.
func (s *apiServer) refuse(verb string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deny = verb
	s.cuts++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *apiServer) seen() (requests, events []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests), slices.Clone(s.events)
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb := strings.ToLower(r.Method)
	others := map[string]runtime.Object{
		"/api/v1/pods": &corev1.PodList{}, "/api/v1/namespaces": &corev1.NamespaceList{},
		"/apis/networking.k8s.io/v1/networkpolicies": &networkingv1.NetworkPolicyList{},
	}
	empty, other := others[r.URL.Path]
	if r.URL.Path == "/api/v1/nodes" || other {
		verb = "list"
		if r.URL.Query().Get("watch") == "true" {
			verb = "watch"
		}
	}
	s.mu.Lock()
	if !other && !strings.HasPrefix(r.URL.Path, "/apis/policy.") {
		s.requests = append(s.requests, verb+" "+r.URL.Path+" "+r.Header.Get("Accept"))
	}
	denied := verb == s.deny
	w.Header().Set("Date", time.Now().Add(s.ahead).UTC().Format(http.TimeFormat))
	s.mu.Unlock()
	switch {
	case denied:
		http.Error(w, "nodes is forbidden: the ServiceAccount may not "+verb, http.StatusForbidden)
	case r.URL.Path == "/version":
		fmt.Fprint(w, `{"major":"1","minor":"34","gitVersion":"v1.34.1"}`)
	case verb == "list" && other:
		s.encode(w, empty)
	case verb == "list":
		s.list(w, r)
	case verb == "watch":
		s.watch(w, r, !other)
	case strings.HasSuffix(r.URL.Path, "/events") || strings.Contains(r.URL.Path, "/events/"):
		s.event(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *apiServer) protobuf() runtime.SerializerInfo {
	info, ok := runtime.SerializerInfoForMediaType(s.codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		s.t.Error("no protobuf in the scheme")
	}
	return info
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")); from > s.version {
		http.Error(w, "Too large resource version", http.StatusGatewayTimeout)
		return
	}
	list := &corev1.NodeList{}
	list.ResourceVersion = strconv.Itoa(s.version)
	for _, n := range s.nodes {
		list.Items = append(list.Items, *n)
	}
	s.encode(w, list)
}

// encode sends a list: that of the Nodes, or of a kind of which there are none.
func (s *apiServer) encode(w http.ResponseWriter, list runtime.Object) {
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	gv := corev1.SchemeGroupVersion
	if _, ok := list.(*networkingv1.NetworkPolicyList); ok {
		gv = networkingv1.SchemeGroupVersion
	}
	encoder := s.codecs.EncoderForVersion(s.protobuf().Serializer, gv)
	if err := encoder.Encode(list, w); err != nil {
		s.t.Error(err)
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, nodes bool) {
	info := s.protobuf()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	frames := info.StreamSerializer.NewFrameWriter(w)
	encoder := restwatch.NewEncoder(
		streaming.NewEncoder(frames, s.codecs.EncoderForVersion(info.StreamSerializer.Serializer, corev1.SchemeGroupVersion)),
		s.codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion))
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	s.mu.Lock()
	cuts := s.cuts
	s.mu.Unlock()
	for {
		s.mu.Lock()
		var events []watch.Event
		if nodes {
			events = s.history[min(from, len(s.history)):] // silent about versions that are yet to come
		}
		changed, cut := s.changed, s.cuts != cuts
		s.mu.Unlock()
		if cut {
			return
		}
		for _, e := range events {
			if encoder.Encode(&e) != nil {
				return
			}
			from++
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *apiServer) event(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	e := &corev1.Event{}
	if r.Method == http.MethodPatch {
		err = json.Unmarshal(body, e)
	} else {
		_, _, err = s.codecs.UniversalDeserializer().Decode(body, nil, e)
	}
	if err != nil {
		s.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	s.mu.Lock()
	s.events = append(s.events, fmt.Sprintf("%s %s about %s %s (%s) by %s on %s: %s %s %q, %d times", r.Method, strings.Join(strings.Split(r.URL.Path, "/")[:6], "/"),
		e.InvolvedObject.Kind, e.InvolvedObject.Name, e.InvolvedObject.UID, e.Source.Component, e.Source.Host, e.Type, e.Reason, e.Message, e.Count))
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	if err := s.codecs.EncoderForVersion(s.protobuf().Serializer, corev1.SchemeGroupVersion).Encode(e, w); err != nil {
		s.t.Error(err)
	}
}

// running starts a source; it ends with the test.
func running(t *testing.T, s Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if s.Alive() == nil {
			t.Error("a source that has ended says that it is alive")
		}
	})
}
