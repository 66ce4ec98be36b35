// Package policy resolves NetworkPolicies and ClusterNetworkPolicies for one node: which pods of it they
// select, who the peers of their rules are, which numbers named ports have. It does no I/O and knows no type
// of Kubernetes: package source converts objects, package flows makes flows of what comes out.
//
// # Workflow
//
//	ix := policy.NewIndex()
//	ix.SetPod(key, pod); ix.SetNamespace(…); ix.SetPolicy(…)   // whatever changed
//	ix.SetLocal(attachments)                                   // the pods of this node
//	world.Policy = ix.Policy()
//
// Policy does the work, for what has changed since it was last called. What comes out depends on
// what is known, not on the order in which it became known.
//
// # How
//
// A policy that selects no pod of this node costs only its entry in the index. The rules of the others name
// selectors; a selector knows the identities that it matches. An identity is all pods that no rule in force can
// tell apart: the same namespace, the same values of the labels, and the same numbers of the named ports, that
// these rules mention. So a pod more is looked up, not compared with every policy.
package policy
