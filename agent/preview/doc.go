// Package preview tells what policies would change before they are applied: which connections would be dropped
// that pass now, and which would pass that are dropped. It looks at the whole cluster, whichever node is asked, and
// applies nothing.
//
// # Workflow
//
//	r, err := preview.Read(preview.Request{Files: …, Delete: …, Namespace: "default"})
//	result, err := preview.Preview(ctx, objects, r)
//
// # How
//
// Pods that no policy can tell apart, before and after, are looked at as one group: the same namespace, the same
// values of the labels that policies mention, the same named ports, the same ranges around their addresses. A
// verdict can change only where a policy that is changed selects one of the two ends. So first that end alone is
// judged, against all groups, all nodes, and one address of each range that rules mention; the other end is
// judged only where the first has changed. Between the ports that rules mention no verdict changes. So the
// result is exact, for all ports, and not a sample. Judges are those of package flows, which look at what the
// switch looks at.
//
// # What it does not tell
//
// Established connections are judged as new ones: the agent ends those that are no longer allowed. Services are not
// translated: policies see their endpoints. A pod without an address is named in a note and left out.
package preview
