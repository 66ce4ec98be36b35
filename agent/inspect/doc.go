// Package inspect answers an operator's questions about one node: which flows there are and for whom, the way
// of a packet, why it is forwarded or dropped, whether the bridge holds what is wanted. It speaks of what the
// bridge really does: of flows as they were read back and of ofproto/trace, with the compiled set beside them
// only to name objects and to say where the two differ.
//
// A Subject is one node, seen live (the agent makes one), in a report, or in a saved flow dump beside
// manifests. Handler answers for a Subject over HTTP, so that all three are asked alike.
//
//	GET /v1/flows?owner=POD&table=T&drops=1     []Flow
//	GET /v1/trace?from=…&to=…&proto=…&port=…    Trace
//	GET /v1/why?from=…&to=…&proto=…&port=…      Why
//	GET /v1/drops                               []Drop
//	GET /v1/verify?samples=N&seed=N             Verification
//	GET /v1/locate?name=NAMESPACE/NAME          Place
package inspect
