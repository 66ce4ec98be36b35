package inspect_test

import (
	"testing"

	"github.com/twill-net/twill/agent/inspect"
)

// BenchmarkTrace is what one node does for `twill trace`.
func BenchmarkTrace(b *testing.B) {
	n := startNode(b, alpha(), 1, 2, 3)
	s := n.subject()
	for b.Loop() {
		if _, err := s.Trace(b.Context(), inspect.Question{From: "default/web-0", To: "198.18.2.7", Proto: "tcp", Port: 80}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTraceThroughAService has two looks into connection tracking and a group.
func BenchmarkTraceThroughAService(b *testing.B) {
	n := startNode(b, city(b), 1, 2, 3)
	s := n.subject()
	for b.Loop() {
		if _, err := s.Trace(b.Context(), inspect.Question{From: "default/web-0", To: "service/default/web"}); err != nil {
			b.Fatal(err)
		}
	}
}
