package source

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// lookAgain is how long a kind that the API server does not serve is taken not to exist.
const lookAgain = 10 * time.Second

// unlessInstalled makes a kind whose CRD is not installed look like one that has no objects. Once it is installed,
// the next watch, which begins at no version, is shown all objects there are.
func unlessInstalled(lw *cache.ListWatch, empty func() runtime.Object) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContextFunc(ctx, options)
			if apierrors.IsNotFound(err) {
				return empty(), nil
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchFuncWithContext(ctx, options)
			if !apierrors.IsNotFound(err) || options.SendInitialEvents != nil {
				return w, err
			}
			nothing := watch.NewFake()
			stop := context.AfterFunc(ctx, nothing.Stop)
			time.AfterFunc(lookAgain, func() {
				stop()
				nothing.Stop()
			})
			return nothing, nil
		},
	}
}
