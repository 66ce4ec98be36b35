package agent

import (
	"fmt"
	"net/http"

	"github.com/twill-net/twill/flows"
)

// TraceStep is one table on a packet's way, in words.
type TraceStep struct {
	Table    string      `json:"table"`
	Owner    flows.Owner `json:"owner"`
	Sentence string      `json:"sentence"`
}

// TraceResult is a packet's way through this node's bridge.
type TraceResult struct {
	Packet   string      `json:"packet"`
	Steps    []TraceStep `json:"steps"`
	Verdict  string      `json:"verdict"`
	Datapath string      `json:"datapathActions"`
	Megaflow string      `json:"megaflow"`
	Raw      string      `json:"raw"`
}

// trace answers GET /v1/trace?packet=FLOW: FLOW is in the syntax of ofproto/trace.
func (a *Agent) trace(r *http.Request) (any, error) {
	packet := r.URL.Query().Get("packet")
	if packet == "" {
		return nil, badRequest{fmt.Errorf("trace: the packet is missing")}
	}
	d, err := a.daemon.current()
	if err != nil {
		return nil, err
	}
	text, err := d.Trace(r.Context(), a.cfg.Bridge, packet)
	if err != nil {
		return nil, err
	}
	t, err := flows.ParseTrace(text, a.cfg.Bridge)
	if err != nil {
		return nil, err
	}
	out := TraceResult{Packet: packet, Datapath: t.Datapath, Megaflow: t.Megaflow, Raw: text}
	a.loop.view(func(desired *flows.Desired, w *flows.World, _ Applied) {
		names := flows.NamesOf(w)
		for _, s := range t.Steps {
			step := TraceStep{Table: s.Table.String(), Sentence: "no flow matched"}
			if f, ok := desired.Flow(s.Cookie); ok {
				step.Owner, step.Sentence = f.Owner, names.Explain(f)
				out.Verdict = verdict(names, f, t)
			} else if s.Cookie != 0 || s.Match != "No match." {
				step.Sentence = "a flow that is not Twill's: " + s.Match
			}
			out.Steps = append(out.Steps, step)
		}
	})
	return out, nil
}

// verdict is the last line: what became of the packet, decided by its last flow.
func verdict(names *flows.Names, last flows.Flow, t flows.Trace) string {
	port, tunnel := t.Exit()
	switch {
	case last.Drop != "":
		return fmt.Sprintf("dropped by %s: %s", last.Owner, last.Drop.Sentence())
	case t.Dropped():
		return "dropped: the port it would leave by is the one it came from, or is gone"
	case tunnel != "":
		return "forwarded through the tunnel to " + names.Address(tunnel)
	case port != "":
		return "forwarded to " + names.Port(port)
	}
	return "answered to the sender"
}
