package source

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// TestAKindWithoutItsCRDHasNoObjectsUntilItIsInstalled has an API server that does not serve the kind, and then does.
func TestAKindWithoutItsCRDHasNoObjectsUntilItIsInstalled(t *testing.T) {
	var installed atomic.Bool
	var failure atomic.Value
	missing := apierrors.NewNotFound(schema.GroupResource{Group: clusterPolicies().Group, Resource: "clusternetworkpolicies"}, "")
	answer := func() error {
		if err, ok := failure.Load().(error); ok {
			return err
		}
		if !installed.Load() {
			return missing
		}
		return nil
	}
	asked := make(chan string, 16)
	lw := unlessInstalled(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			if err := answer(); err != nil {
				return nil, err
			}
			return &clusterPolicyList{Items: make([]ClusterNetworkPolicy, 3)}, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			asked <- o.ResourceVersion
			if err := answer(); err != nil {
				return nil, err
			}
			return watch.NewFake(), nil
		},
	}, func() runtime.Object { return &clusterPolicyList{} })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	list, err := lw.ListWithContext(ctx, metav1.ListOptions{})
	if err != nil || len(list.(*clusterPolicyList).Items) != 0 {
		t.Errorf("not installed: %v, %v; want an empty list", list, err)
	}
	w, err := lw.WatchWithContext(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatalf("not installed: a watch fails with %v", err)
	}
	<-asked
	select {
	case e, open := <-w.ResultChan():
		t.Errorf("not installed: the watch says %v (open %v)", e, open)
	case <-time.After(100 * time.Millisecond): // it stays silent
	}
	cancel()
	select {
	case _, open := <-w.ResultChan():
		if open {
			t.Error("an event after the end")
		}
	case <-time.After(5 * time.Second):
		t.Error("the watch outlives its context")
	}
	if _, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{SendInitialEvents: new(bool)}); !apierrors.IsNotFound(err) {
		t.Errorf("a streaming list has to fail, so that a plain one is tried: %v", err)
	}
	installed.Store(true)
	if list, err = lw.ListWithContext(t.Context(), metav1.ListOptions{}); err != nil || len(list.(*clusterPolicyList).Items) != 3 {
		t.Errorf("installed: %v, %v", list, err)
	}
	// What is no "not found" is a failure like any other.
	failure.Store(errors.New("forbidden"))
	if _, err := lw.ListWithContext(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a list that is forbidden looks empty")
	}
	if _, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a watch that is forbidden looks quiet")
	}
}
