// Package flows says what the bridge of a node must hold, and what its flows mean.
//
// It is pure: no I/O, no clock, no goroutine, no logging. A [World] goes in, flows come out:
//
//	World ── Compile(owner) ──► []Flow ── Desired.Replace ──► Delta{Add, Delete} ──► Delta.Bundle
//
// The same [Flow] type is compiled, hashed, printed as ovs-ofctl syntax, parsed back from a dump and
// explained in words, so what an operator reads is what the switch was told.
//
// # A flow's cookie is its name
//
// The upper 32 bits of a cookie hash the [Owner], the object that asked for the flow; the lower 32
// hash what the flow says. Desired minus live is therefore set arithmetic on numbers: an agent that
// restarts compiles the same cookies and changes nothing, and a flow whose text changed has a new
// name and replaces the old one in the same bundle.
//
// # Reading order
//
// world.go (what is known), pipeline.go (the tables and registers in prose, then the flows every bridge
// has), peer.go and pod.go (what one node, one pod adds), desired.go (who owns what and what must
// change), explain.go and trace.go (back to words).
package flows
