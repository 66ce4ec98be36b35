package source

import (
	"context"
	"fmt"
	"strconv"

	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// unlessRestored has a kind listed anew when the API server's data is older than what we have seen of it: somebody has
// restored etcd from a backup. A watch that begins at a version that is yet to come is no error to the API server, which
// stays silent until its versions have got there, and the objects that were deleted, created or changed by the
// restoration would never be told. So before each watch the server is asked for its present version, by a list of one
// object that is read by a quorum of etcd.
//
// A restoration by `etcdutl snapshot restore --bump-revision --mark-compacted` needs none of this; nor can one be seen
// here that has caught up with our version before we are connected again.
func unlessRestored(lw *cache.ListWatch, kind string, log logrus.FieldLogger) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: lw.ListWithContextFunc,
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			seen, err := strconv.ParseUint(options.ResourceVersion, 10, 64)
			if err != nil || seen == 0 {
				return lw.WatchWithContext(ctx, options)
			}
			list, err := lw.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
			switch {
			case err == nil:
				has, ok := versionOf(list)
				if ok && has < seen {
					log.WithFields(logrus.Fields{"kind": kind, "seen": seen, "server": has}).Warn(
						"The Kubernetes API has older data than it had: etcd was restored; reading everything anew")
					return nil, apierrors.NewResourceExpired(fmt.Sprintf("version %d has been seen, the API server is at %d: etcd was restored", seen, has))
				}
			case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown: // no answer at all
				return nil, err
			}
			return lw.WatchWithContext(ctx, options)
		},
	}
}

// versionOf is the resourceVersion of a list; false if it is no number.
func versionOf(list any) (uint64, bool) {
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return 0, false
	}
	version, err := strconv.ParseUint(accessor.GetResourceVersion(), 10, 64)
	return version, err == nil
}
