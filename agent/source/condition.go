package source

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// networkReason is the reason of our condition.
const networkReason = "TwillIsReady"

// networkConditions is what is kept of a Node's conditions: NetworkUnavailable alone.
func networkConditions(n *corev1.Node) []corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			return []corev1.NodeCondition{{Type: c.Type, Status: c.Status, Reason: c.Reason}}
		}
	}
	return nil
}

// NetworkAvailable sets the condition NetworkUnavailable of a Node to false, unless it is: a cloud's controllers set
// it to true until somebody says that pods of the node can be reached, and keep pods away from it meanwhile. changed
// says whether there was something to set. What the condition is comes from the watch, so asking costs nothing.
func (a *API) NetworkAvailable(ctx context.Context, node string) (changed bool, err error) {
	for _, informer := range a.informers {
		o, found, err := informer.GetStore().GetByKey(node)
		if err != nil || !found {
			continue
		}
		n, ok := o.(*corev1.Node)
		if !ok {
			continue
		}
		if c := networkConditions(n); len(c) > 0 && c[0].Status == corev1.ConditionFalse {
			return false, nil
		}
		now := metav1.NewTime(time.Now())
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
			Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: networkReason,
			Message: "Twill attaches pods to this node", LastHeartbeatTime: now, LastTransitionTime: now,
		}}}})
		if err != nil {
			return false, err
		}
		err = a.client.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(node).SubResource("status").
			Body(patch).Do(ctx).Error()
		if err != nil {
			return false, fmt.Errorf("condition NetworkUnavailable of Node %s: %w; does the ClusterRole allow patch of nodes/status?", node, err)
		}
		return true, nil
	}
	return false, nil
}
