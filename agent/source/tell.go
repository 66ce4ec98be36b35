package source

import (
	"github.com/twill-net/twill/agent/policy"
	"github.com/twill-net/twill/flows"
)

// PolicyKinds are the kinds that policies depend on.
func PolicyKinds() []string {
	return []string{"Node", "Pod", "Namespace", "NetworkPolicy", "ClusterNetworkPolicy"}
}

// Tell tells an index about one object; value is nil for one that is not there.
func Tell(x *policy.Index, key Key, value any) {
	switch key.Kind {
	case "Pod":
		v, _ := value.(*policy.Pod)
		x.SetPod(key.Namespace+"/"+key.Name, v)
	case "Namespace":
		v, _ := value.(*policy.Namespace)
		x.SetNamespace(key.Name, v)
	case "NetworkPolicy":
		v, _ := value.(*policy.Policy)
		x.SetPolicy("networkpolicy/"+key.Namespace+"/"+key.Name, v)
	case "ClusterNetworkPolicy":
		v, _ := value.(*policy.Policy)
		x.SetPolicy("clusternetworkpolicy/"+key.Name, v)
	case "Node":
		if n, ok := value.(flows.Node); ok {
			x.SetNode(key.Name, &policy.Node{Name: n.Name, Labels: policy.Labels(n.Labels), Addresses: n.Addresses})
		} else {
			x.SetNode(key.Name, nil)
		}
	}
}
