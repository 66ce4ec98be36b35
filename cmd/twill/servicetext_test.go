package main

import (
	"github.com/twill-net/twill/agent/inspect"
	"github.com/twill-net/twill/flows"
)

// sampleChoices are three endpoints, of which the second is followed.
func sampleChoices() []inspect.Choice {
	return []inspect.Choice{
		{Endpoint: "198.18.1.2:8080", Where: "pod default/web-0", Share: 1.0 / 3},
		{Endpoint: "198.18.1.4:8080", Where: "pod default/web-1", Share: 1.0 / 3, Followed: true},
		{Endpoint: "198.18.2.9:8080", Where: "on node worker-2", Share: 1.0 / 3},
	}
}

func sampleServiceTrace() traceResult {
	return traceResult{
		Hops: []inspect.Trace{{Node: "worker-1", What: "TCP to port 80 from 198.18.1.2 (pod default/web-0) to 198.19.0.10 (Service default/web)", Steps: []inspect.Step{
			{Table: "conntrack", Owner: "service-address/198.19.0.10", Sentence: "IPv4 packets to 198.19.0.10: track and translate as the connection was, continue at service"},
			{Table: "service", Owner: "service/default/web:http", Sentence: "TCP packets over IPv4 of a new connection, to 198.19.0.10, to port 80: mark as for a Service, choose an endpoint by group 642710292", Choices: sampleChoices()},
			{Table: "egress-admin", Owner: "clusternetworkpolicy/no-telnet/egress/0", Sentence: "packets that meet every condition of clusternetworkpolicy/no-telnet/egress/0: mark as allowed by a rule, continue at ingress-admin"},
			{Table: "route", Owner: "pod/default/web-1", Sentence: "IPv4 packets to 198.18.1.4 (pod default/web-1): choose the port of pod default/web-1, continue at isolation"},
		}}},
		Verdict: inspect.Verdict{Outcome: inspect.Delivered, Sentence: "forwarded to pod default/web-1 (endpoint 2 of 3, 33 % of new connections)"},
	}
}

func sampleServiceWhy() whyResult {
	list := sampleChoices()
	list[1].Followed = false
	return whyResult{
		Path: []string{"worker-1"},
		Why: inspect.Why{
			Node: "worker-1", What: "TCP to port 80 from 198.18.1.2 (pod default/web-0) to 198.19.0.10 (Service default/web)",
			Verdict: inspect.Verdict{Outcome: inspect.Dropped, Owner: "pod/default/web-1", Table: "ingress", Reason: flows.DropIngress, Sentence: "dropped by pod/default/web-1 (ingress-isolation): " + flows.DropIngress.Sentence()},
			Because: "pod default/web-1 is isolated for ingress by default/closed, and none of their rules allows it; their only rule does not match: default/closed ingress 0: port tcp 8080 is not in {tcp 5432}",
			Remedy:  "an ingress rule of one of default/closed, or of another NetworkPolicy for the pod, has to allow TCP port 8080 from 198.18.1.2 (pod default/web-0)",
		},
		Endpoints: []endpointResult{
			{list[0], true, "forwarded back to pod default/web-0, from which it came (endpoint 1 of 3, 33 % of new connections)"},
			{list[1], false, "dropped by pod/default/web-1 (ingress-isolation): " + flows.DropIngress.Sentence()},
			{list[2], true, "forwarded to pod default/web-2"},
		},
	}
}

// sampleUngrouped is what is known of a dump without its groups.
func sampleUngrouped() inspect.Verification {
	return inspect.Verification{Node: "worker-1", Wanted: 276, Live: 276, WantedGroups: 4,
		Ungrouped: "the flows lead to groups, and no dump of those is there: --groups FILE, the output of `ovs-ofctl -O OpenFlow15 dump-groups br-twill`",
		Untraced:  "a packet cannot be traced: the flows lead to groups, and no dump of those is there: --groups FILE, the output of `ovs-ofctl -O OpenFlow15 dump-groups br-twill`"}
}

func sampleRejected() whyResult {
	return whyResult{Path: []string{"worker-1"}, Why: inspect.Why{
		Node: "worker-1", What: "TCP to port 443 from 198.18.1.2 (pod default/web-0) to 198.19.0.99 (Service default/nobody)",
		Verdict: inspect.Verdict{Outcome: inspect.Rejected, Owner: "service/default/nobody:443", Table: "service", Sentence: "rejected: Service default/nobody has no endpoint that is ready (service/default/nobody:443); the host answers with a TCP reset or an ICMP error"},
		Because: "Service default/nobody (service/default/nobody:443) has no endpoint that is ready: its EndpointSlices list none of this family",
		Remedy:  "a pod that its selector selects has to be ready, or to terminate and still serve: `kubectl -n default get endpointslices -l kubernetes.io/service-name=nobody -o wide`, and the readiness probes of its pods",
	}}
}

func sampleGroups() inspect.Verification {
	return inspect.Verification{Node: "worker-1", Wanted: 276, Live: 276, WantedGroups: 4, Sampled: 300,
		Groups: []flows.Difference{{Kind: flows.Altered, Owner: "service/default/web:http", What: "the bucket bucket_id:9,weight:100,actions=drop is missing",
			Wanted: "group_id=7,type=select,selection_method=dp_hash,bucket=bucket_id:9,weight:100,actions=drop", Live: "group_id=7,type=select,selection_method=dp_hash"}}}
}
