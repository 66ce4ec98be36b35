package source

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// APIConfig says how the Kubernetes API is reached.
type APIConfig struct {
	// Kubeconfig is a file; empty means the service account of the pod that we are in.
	Kubeconfig string
	// Server overrides the URL of the API server. An agent must set it, or use a kubeconfig, where the
	// Service of the API server is reached only once the agent works.
	Server string
	// NodeName is the host that our Events name.
	NodeName string
	// Without are kinds of objects not to follow.
	Without []string
	Log     logrus.FieldLogger
	// OnChange may be nil.
	OnChange OnChange
}

// API is the Source that watches a Kubernetes API server.
type API struct {
	*store
	client    *client
	clock     *clock
	contacts  []*contact
	informers []cache.SharedIndexInformer
	// delivered says of each informer that its first full list has reached the store.
	delivered []cache.InformerSynced
	synced    atomic.Bool
	events    record.EventBroadcaster
	recorder  record.EventRecorder
}

// NewAPI returns the Source; it does not yet contact the server. Errors are about the kubeconfig.
func NewAPI(config APIConfig) (*API, error) {
	where := "kubeconfig " + config.Kubeconfig
	var restConfig *rest.Config
	var err error
	if config.Kubeconfig == "" {
		where = "the service account of this pod (set a kubeconfig outside of a cluster)"
		restConfig, err = rest.InClusterConfig()
		if err == nil && config.Server != "" {
			restConfig.Host = config.Server
		}
	} else {
		overrides := &clientcmd.ConfigOverrides{}
		overrides.ClusterInfo.Server = config.Server
		restConfig, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: config.Kubeconfig}, overrides).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("access to the Kubernetes API from %s: %w", where, err)
	}
	clock := newClock()
	restConfig.Wrap(clock.wrap)
	c, err := newClient(restConfig)
	if err != nil {
		return nil, fmt.Errorf("access to the Kubernetes API from %s: %w", where, err)
	}

	a := &API{store: newStore(config.Log, config.OnChange), client: c, clock: clock}
	for _, k := range kinds(config.Without...) {
		if err := a.follow(k); err != nil {
			return nil, fmt.Errorf("watch of %s: %w", k.resource, err)
		}
	}
	// The library joins Events that repeat and limits each object to 25 at once and one in 5 minutes.
	a.events = record.NewBroadcaster(record.WithContext(logInto(context.Background(), config.Log)))
	a.recorder = a.events.NewRecorder(c.scheme, corev1.EventSource{Component: "twill", Host: config.NodeName})
	return a, nil
}

// follow adds an informer for k that feeds the store.
func (a *API) follow(k kind) error {
	client, err := a.client.group(k.GroupVersion())
	if err != nil {
		return err
	}
	link := newContact(k.Kind, a.log)
	requests := unlessRestored(cache.NewListWatchFromClient(client, k.resource, metav1.NamespaceAll, fields.Everything()), k.Kind, a.log)
	if k.GroupVersion() == clusterPolicies() {
		requests = unlessInstalled(requests, func() runtime.Object { return &clusterPolicyList{} })
	}
	lw := link.attend(requests)
	informer := cache.NewSharedIndexInformer(lw, k.make(), 0, cache.Indexers{})
	err = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) { link.broken(ctx, err) })
	if err != nil {
		return err
	}
	err = informer.SetTransform(func(o any) (any, error) {
		if full, ok := o.(object); ok {
			return k.strip(full), nil
		}
		return o, nil
	})
	if err != nil {
		return err
	}
	put := func(o any) {
		key, e := newEntry(k, o.(object), "")
		a.set(key, e)
	}
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    put,
		UpdateFunc: func(_, o any) { put(o) },
		DeleteFunc: func(o any) {
			if name, err := cache.DeletionHandlingObjectToName(o); err == nil {
				a.set(Key{Kind: k.Kind, Namespace: name.Namespace, Name: name.Name}, entry{})
			}
		},
	})
	if err != nil {
		return err
	}
	a.contacts = append(a.contacts, link)
	a.informers = append(a.informers, informer)
	a.delivered = append(a.delivered, handler.HasSynced)
	return nil
}

// Run implements Source.
func (a *API) Run(ctx context.Context) error {
	ctx = logInto(ctx, a.log)
	defer a.events.Shutdown()
	a.events.StartRecordingToSink(&eventSink{ctx, a.client.core})
	var running sync.WaitGroup
	for _, informer := range a.informers {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	if cache.WaitForCacheSync(ctx.Done(), a.delivered...) {
		a.synced.Store(true)
		a.onChange(Key{})
	}
	running.Wait()
	for _, link := range a.contacts {
		link.ended()
	}
	return nil
}

// Synced implements Source.
func (a *API) Synced() bool { return a.synced.Load() }

// Alive implements Source.
func (a *API) Alive() error {
	for _, link := range a.contacts {
		if err := link.alive(); err != nil {
			return a.clock.explain(err)
		}
	}
	return nil
}

// Skew implements Source.
func (a *API) Skew() (time.Duration, bool) { return a.clock.skew() }

// Event implements Source. Events that are recorded before Run are dropped.
func (a *API) Event(about Ref, eventType, reason, message string) {
	ref := reference(about)
	a.recorder.Event(&ref, eventType, reason, message)
}

// Version asks the server for its version, such as "v1.34.1".
func (a *API) Version(ctx context.Context) (string, error) {
	raw, err := a.client.core.Get().AbsPath("/version").DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("version of the API server %s: %w", a.client.config.Host, err)
	}
	var info version.Info
	if err := json.Unmarshal(raw, &info); err != nil {
		return "", fmt.Errorf("version of the API server %s: %w", a.client.config.Host, err)
	}
	return info.GitVersion, nil
}

// logInto makes client-go write into our log what it would write to stderr.
func logInto(ctx context.Context, log logrus.FieldLogger) context.Context {
	return klog.NewContext(ctx, funcr.New(func(_, args string) {
		log.WithField("from", "client-go").Info(args)
	}, funcr.Options{}))
}

// client speaks to the API server. It is client-go's REST client without the typed clients of all API
// groups, which would cost some 20 MiB of binary and memory.
type client struct {
	config *rest.Config
	scheme *runtime.Scheme
	core   rest.Interface
}

func newClient(config *rest.Config) (*client, error) {
	c := &client{config: rest.CopyConfig(config), scheme: runtime.NewScheme()}
	if err := addToScheme(c.scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(c.scheme, schema.GroupVersion{Version: "v1"})
	c.config.UserAgent = rest.DefaultKubernetesUserAgent()
	// Protobuf is a fifth of JSON to decode.
	c.config.ContentType = runtime.ContentTypeProtobuf
	c.config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// A handful of watches, and Events, which have limits of their own.
	c.config.QPS, c.config.Burst = 20, 40
	core, err := c.group(corev1.SchemeGroupVersion)
	c.core = core
	return c, err
}

// group is the client of one API group.
func (c *client) group(gv schema.GroupVersion) (rest.Interface, error) {
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(c.scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}
