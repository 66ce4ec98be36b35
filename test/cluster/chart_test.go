//go:build e2e

package cluster

import (
	"strings"
	"testing"
)

func TestTheChartRefusesWrongValuesByName(t *testing.T) {
	p, err := Build(t.Context(), checkout(t), t.Logf)
	must(t, err)
	for set, want := range map[string]string{
		"tunnel.type=gre":                "tunnel",
		"tunnel.vni=0":                   "vni",
		"tunnel.port=70000":              "port",
		"mtu=1000":                       "mtu",
		"datapath=dpdk":                  "datapath",
		"ovs.mode=none":                  "mode",
		"clusterCIDRs={10.244.0.0}":      "clusterCIDRs",
		"image.digest=latest":            "digest",
		"agent.auditInterval=1":          "auditInterval",
		"agent.maxUnavailable=0":         "maxUnavailable",
		"cni.confName=05-twill.conf":     "confName",
		"apiServer=198.51.100.10:6443":   "apiServer",
		"tunel.type=vxlan":               "tunel",
		"podMonitor.enabled=true":        "agent.httpAddress",
		"bridge=a-name-that-is-too-long": "bridge",
	} {
		if _, err := p.Template(t.Context(), checkout(t), "--set", set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %s: got %v, want an error that names %s", set, err, want)
		}
	}
	for _, set := range []string{
		"podMonitor.enabled=true,agent.httpAddress=:9455", "dashboard.enabled=true", "ovs.mode=host", "cleanUp=false", "datapath=system",
		"image.digest=sha256:" + strings.Repeat("0", 64), "clusterCIDRs={10.244.0.0/16,2001:db8::/56}",
	} {
		if _, err := p.Template(t.Context(), checkout(t), "--set", set); err != nil {
			t.Errorf("--set %s: %v", set, err)
		}
	}
}
