package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// TestWhyTellsTheWholeWay: beyond the tunnel the answer is still that to the question, with the Service that sent the packet there
// and the causes of all nodes.
func TestWhyTellsTheWholeWay(t *testing.T) {
	first := inspect.Why{Node: "alpha", What: "TCP to port 80 from 198.18.1.2 (pod default/web) to 198.19.0.10 (Service shop/db)", Allowed: true,
		Verdict: inspect.Verdict{Outcome: inspect.Tunnelled, To: "beta"}, Causes: []flows.Owner{"pod/default/web", "service/shop/db:sql", "node/beta"}, Notes: []string{"note of alpha"},
		Service: "service/shop/db:sql", Endpoint: "198.18.2.2:5432", Remembered: true, Sends: "Service shop/db sends it to 198.18.2.2 port 5432",
		Next: &inspect.Next{Node: "beta", Question: inspect.Question{From: "node/alpha", To: "198.18.2.2", Source: "198.18.1.2", Proto: "tcp", Port: 5432}}}
	second := inspect.Why{Node: "beta", What: "TCP to port 5432 from 198.18.1.2 to 198.18.2.2 (pod shop/db)", Allowed: true,
		Verdict: inspect.Verdict{Outcome: inspect.Delivered, To: "shop/db", Table: "route", Owner: "pod/shop/db", Sentence: "forwarded to pod shop/db"},
		Because: "pod shop/db of node beta has the address 198.18.2.2", Causes: []flows.Owner{"node/alpha", "pod/shop/db", "node/beta"}, Notes: []string{"note of beta"}}
	socket := serveSocket(t, func(w http.ResponseWriter, r *http.Request) {
		var answer any
		switch {
		case r.URL.Path == "/v1/locate":
			answer = inspect.Place{Node: "alpha", Here: true}
		case r.URL.Query().Get("from") == "node/alpha":
			answer = second
		default:
			answer = first
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	code, stdout, stderr := twill(t, "twill", "why", "default/web", "service/shop/db", "--admin-socket", socket, "--peer-sockets", socket)
	if code != 0 {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, line := range []string{
		"allowed  TCP to port 80 from 198.18.1.2 (pod default/web) to 198.19.0.10 (Service shop/db)",
		"because  Service shop/db sends it to 198.18.2.2 port 5432; pod shop/db of node beta has the address 198.18.2.2",
		"where    node beta, table route, a flow of pod/shop/db; it came from node alpha through the tunnel",
		"change   nothing has to change; without any of pod/default/web, service/shop/db:sql, node/beta, node/alpha, pod/shop/db the answer would be another",
		"note     note of alpha\nnote     note of beta",
	} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("%q is not in\n%s", line, stdout)
		}
	}
	second.Allowed, second.Outcome, second.Remedy = false, inspect.Dropped, "a remedy of beta"
	code, stdout, _ = twill(t, "twill", "why", "default/web", "service/shop/db", "--admin-socket", socket, "--peer-sockets", socket)
	if code != exitDropped || !strings.Contains(stdout, "change   a remedy of beta\n") || !strings.Contains(stdout, "because  Service shop/db sends it to") {
		t.Errorf("dropped at beta: status %d\n%s", code, stdout)
	}
}
