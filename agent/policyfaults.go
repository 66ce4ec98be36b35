package agent

import (
	"maps"
	"slices"
	"strings"

	"github.com/twill-net/twill/agent/source"
	"github.com/twill-net/twill/flows"
)

// tellFaults says once, in the log and by an Event at the policy, what of a policy cannot be used, and when it can be
// used again.
func (a *Agent) tellFaults(before, now *flows.World) {
	old, faults := faultsOf(before), faultsOf(now)
	for _, owner := range slices.Sorted(maps.Keys(faults)) {
		if old[owner] != faults[owner] {
			a.log.WithField("policy", owner).Error("cannot be used as it is: " + faults[owner])
			a.source.Event(policyRef(owner), source.EventWarning, "TwillPolicyUnusable", faults[owner])
		}
	}
	for _, owner := range slices.Sorted(maps.Keys(old)) {
		if faults[owner] == "" {
			a.log.WithField("policy", owner).Info("no longer unusable")
		}
	}
}

func faultsOf(w *flows.World) map[string]string {
	if w == nil || w.Policy == nil {
		return nil
	}
	return w.Policy.Failures
}

// policyRef names the object behind networkpolicy/NAMESPACE/NAME or clusternetworkpolicy/NAME.
func policyRef(owner string) source.Ref {
	words := strings.Split(owner, "/")
	if len(words) == 3 {
		return source.Ref{Key: source.Key{Kind: "NetworkPolicy", Namespace: words[1], Name: words[2]}}
	}
	return source.Ref{Key: source.Key{Kind: "ClusterNetworkPolicy", Name: words[len(words)-1]}}
}

// policyOwner is the other way round; empty for an object that is no policy.
func policyOwner(key source.Key) string {
	switch key.Kind {
	case "NetworkPolicy":
		return "networkpolicy/" + key.Namespace + "/" + key.Name
	case "ClusterNetworkPolicy":
		return "clusternetworkpolicy/" + key.Name
	}
	return ""
}
