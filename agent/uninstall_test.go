package agent

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestUninstallWaitsForAnAgentThatIsStopping(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if !stopped(t.Context(), socket) {
		t.Error("nobody listens, and it was waited for in vain")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if stopped(ctx, socket) {
		t.Error("an agent answers, and was taken for stopped")
	}
	time.AfterFunc(200*time.Millisecond, func() { l.Close() })
	if !stopped(t.Context(), socket) {
		t.Error("the agent went, and was not believed to be gone")
	}
}
