package source

import (
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// kind is one kind of object that both sources follow.
type kind struct {
	schema.GroupVersionKind
	// resource is its plural in URLs of the API.
	resource   string
	namespaced bool
	// make returns an empty object.
	make func() object
	// strip returns a copy that keeps only what convert reads: what it drops does not stay in memory.
	strip func(object) object
	// convert returns the object as the agent knows it: plain data that reflect.DeepEqual compares. The
	// Problems come without Key and Where.
	convert func(object) (value any, problems []Problem)
}

type object interface {
	runtime.Object
	metav1.Object
}

// kinds are all that can be followed; without are left out.
func kinds(without ...string) []kind {
	stripPod, podOf := slimmed(convertPod)
	stripNamespace, namespaceOf := slimmed(convertNamespace)
	stripPolicy, policyOf := slimmed(convertNetworkPolicy)
	stripCluster, clusterOf := slimmed(convertClusterNetworkPolicy)
	all := []kind{
		{corev1.SchemeGroupVersion.WithKind("Node"), "nodes", false, func() object { return &corev1.Node{} }, stripNode, convertNode},
		{corev1.SchemeGroupVersion.WithKind(kindService), "services", true, func() object { return &corev1.Service{} }, stripService, convertService},
		{discoveryv1.SchemeGroupVersion.WithKind(kindSlice), "endpointslices", true, func() object { return &discoveryv1.EndpointSlice{} }, stripSlice, convertSlice},
		{corev1.SchemeGroupVersion.WithKind("Pod"), "pods", true, func() object { return &corev1.Pod{} }, stripPod, podOf},
		{corev1.SchemeGroupVersion.WithKind("Namespace"), "namespaces", false, func() object { return &corev1.Namespace{} }, stripNamespace, namespaceOf},
		{networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), "networkpolicies", true, func() object { return &networkingv1.NetworkPolicy{} }, stripPolicy, policyOf},
		{clusterPolicies().WithKind("ClusterNetworkPolicy"), "clusternetworkpolicies", false, func() object { return &ClusterNetworkPolicy{} }, stripCluster, clusterOf},
	}
	return slices.DeleteFunc(all, func(k kind) bool { return slices.Contains(without, k.Kind) })
}

const (
	kindService = "Service"
	kindSlice   = "EndpointSlice"
)

// ServiceKindNames are the kinds that a node without Services has no use for.
func ServiceKindNames() []string { return []string{kindService, kindSlice} }

// addToScheme teaches a scheme the API groups of kinds, and Events.
func addToScheme(s *runtime.Scheme) error {
	return errors.Join(corev1.AddToScheme(s), discoveryv1.AddToScheme(s), networkingv1.AddToScheme(s), addClusterPolicies(s))
}
