#!/usr/bin/env bash
# Makes problems in a lab, solves each with plain Open vSwitch tools and with twill, and prints both with what
# they really said, as docs/debugging-examples.md. Usage: test/debugging/debugging.sh [BIN-DIR] > docs/debugging-examples.md
# Counters, durations and names that differ from run to run are replaced, so that two runs print the same. It fails
# when a command ends otherwise than it should. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$(cd "${1:-bin}" && pwd)
lab=dbg$$
saved=$(mktemp -d)
trap '"$bin/twill-lab" down --name "$lab" >/dev/null 2>&1; rm -r "${saved:?}"' EXIT
l() { "$bin/twill-lab" --name "$lab" "$@"; }

l up --nodes 2 --ip-family ipv4 >/dev/null
l pod add web --node node-1 --labels app=web >/dev/null
l pod add api --node node-1 --labels app=api >/dev/null
l pod add db --node node-2 --labels app=db >/dev/null

stable() {
  sed -E -e 's/duration=[0-9.]+s/duration=…/g' -e 's/(idle|hard)_age=[0-9]+, //g' -e 's/n_(packets|bytes)=[0-9]+/n_\1=…/g' -e 's/tw[0-9a-f]{13}/twPORT/g' \
    -e 's/ +[0-9.]+k? pkts +[0-9.]+[kM]?B/      … pkts       …B/' -e 's/[0-9.]+ ms/… ms/' \
    -e 's#/run/twill-lab/[a-z0-9]+/nodes/node-[0-9]+/run/#/run/twill/#g' -e 's#/run/twill-lab/[a-z0-9]+/nodes/node-[0-9]+/ovs/#/var/run/openvswitch/#g' \
    -e 's/eth\(dst=([0-9a-f]{2}:){5}[0-9a-f]{2},src=([0-9a-f]{2}:){5}[0-9a-f]{2},/eth(dst=MAC,src=MAC,/g' -e 's/udp\(src=[0-9]+/udp(src=…/' \
    -e 's/^ +[0-9.k]+ +[0-9.k]+ +-  /  …  …  -  /' -e 's/^ +[0-9.]+ s ago/         … s ago/' -e 's/[0-9]+ like it/… like it/' \
    -e 's/(packets|bytes):[0-9]+/\1:…/g' -e 's/used:[0-9.a-z]+/used:…/' -e "s#$saved#SAVED#g" -e 's/[[:space:]]+$//'
}

# ask NODE STATUS COMMAND: run it there, what it says into said; it has to end with that status.
ask() {
  local status=0
  said=$(l node exec "$1" -- env COLUMNS=110 bash -c "$3" 2>&1) || status=$?
  if [ "$status" != "$2" ] || { [ -z "$said" ] && [ "$2" = 0 ]; }; then
    echo "test/debugging/debugging.sh: $1: $3: status $status, want $2: $said" >&2
    return 1
  fi
}
# show NODE COMMAND SAID
show() { printf '```console\n%s# %s\n%s\n```\n\n' "$1" "${2//$saved/SAVED}" "$(stable <<<"$3")"; }
# on NODE STATUS COMMAND: run it there, print it with what it said; it has to end with that status.
on() {
  ask "$@" || exit 1
  show "$1" "$3" "$said"
}
# broken NODE DAMAGE STATUS COMMAND: the same for two commands, of which the first damages what agents repair and shows it. An
# agent that looks just then has repaired it before somebody has seen it, so that both are tried again.
broken() {
  local damage try
  for try in 1 2 3 4 5; do
    ask "$1" 0 "$2" || continue
    damage=$said
    if ask "$1" "$3" "$4"; then
      show "$1" "$2" "$damage"
      show "$1" "$4" "$said"
      return
    fi
  done
  exit 1
}
# until_on NODE COMMAND: waits until the command succeeds there, up to a minute.
until_on() {
  local node=$1 end=$((SECONDS + 60))
  until l node exec "$node" -- bash -c "$2" >/dev/null 2>&1; do
    if ((SECONDS > end)); then
      echo "test/debugging/debugging.sh: $node: not within a minute: $2" >&2
      exit 1
    fi
  done
}
problem() { printf '## %s\n\n%s\n\n' "$1" "$2"; }

echo '# Problems, solved twice'
echo
echo 'Written by `test/debugging/debugging.sh`, which makes each of them in a lab of two nodes; do not edit. Pods default/web (198.18.1.2)'
echo 'and default/api (198.18.1.3) run on node-1, default/db (198.18.2.2) on node-2. `…` stands for what differs from run to run.'
echo

problem '1. Which way does a packet take?' 'web to db, TCP port 80. ofproto/trace shows tables and registers of one node; twill names the objects, and goes on at the other node.'
on node-1 0 "ovs-appctl ofproto/trace br-twill in_port=1,dl_src=\$(ovs-ofctl -O OpenFlow15 dump-flows br-twill table=10 | sed -n 's/.*in_port=1,dl_src=\\([0-9a-f:]*\\).*/\\1/p' | head -1),tcp,nw_src=198.18.1.2,nw_dst=198.18.2.2,nw_ttl=64,tcp_dst=80 | grep -E '^ *[0-9]+\\.'"
on node-1 0 'twill trace default/web default/db --proto tcp --port 80'

problem '2. Nobody has the address' 'A client uses the address of a pod that is gone.'
on node-1 0 "ovs-ofctl -O OpenFlow15 dump-flows br-twill table=60 | grep 'nw_dst=198.18.1.0/24'"
on node-1 3 'twill why default/web 198.18.1.77'

problem '3. No Node has the range' 'The address is in the cluster CIDR, and no podCIDR contains it.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=route | grep 'nw_dst=198.18.0.0/16'"
on node-1 3 'twill why default/web 198.18.99.1'

problem '4. A pod uses an address that is not its own' 'A VM or VRRP inside a pod sends from an address of its own making.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=guard | grep 'priority=10,in_port'"
on node-1 3 'twill why default/web default/api --source 203.0.113.9'

problem '5. UDP to a node vanishes' 'It goes to the port of the tunnel.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=node | grep tp_dst"
on node-1 3 'twill why default/web node/node-2 --proto udp --port 6081'

problem '6. Somebody changed a flow' 'mod-flows leaves the cookie as it is, so no list of cookies shows it. The agent puts it right at its next audit.'
broken node-1 "ovs-ofctl -O OpenFlow15 mod-flows br-twill 'table=60,ip,nw_dst=198.18.1.3 actions=drop' && ovs-ofctl -O OpenFlow15 dump-flows br-twill table=60 | grep 'nw_dst=198.18.1.3'" \
  3 'twill why default/web default/api'
l agent stop node-1 >/dev/null; l agent start node-1 >/dev/null # it repairs at its start

problem '7. Somebody added a flow' 'A flow that no object asked for.'
broken node-1 "ovs-ofctl -O OpenFlow15 add-flow br-twill 'cookie=0xbad,table=60,priority=999,tcp,tp_dst=25 actions=drop' && ovs-ofctl -O OpenFlow15 dump-flows br-twill 'cookie=0xbad/-1' | grep actions" \
  1 'twill verify --samples 0'
l agent stop node-1 >/dev/null; l agent start node-1 >/dev/null

problem '8. What is dropped, and for whom?' 'Every drop is a flow that counts; its cookie names the object and its place says the reason.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill | grep -c 'actions=drop'"
on node-1 0 'twill drops --all | grep -E "reason|unknown-peer|transit"'

problem '9. Which flows exist for a pod?' 'All flows of an object share the upper half of their cookie.'
on node-1 0 "cookie=\$(ovs-ofctl -O OpenFlow15 dump-flows br-twill table=0,in_port=1 | sed -n 's/.*cookie=\\(0x[0-9a-f]*\\).*/\\1/p'); ovs-ofctl -O OpenFlow15 dump-flows br-twill \"cookie=\$cookie/0xffffffff00000000\" | grep actions"
on node-1 0 'twill flows --pod default/web'

problem '10. The agent is down' 'Packets go on by the flows that stand; the tools say what is missing, and the other node still answers for itself.'
l agent stop node-2 >/dev/null
on node-2 0 "ovs-ofctl -O OpenFlow15 dump-flows br-twill table=60 | grep -c actions="
on node-2 1 'twill status'
on node-1 0 'twill trace default/web 198.18.2.2 | tail -2'
l agent start node-2 >/dev/null

l apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: default}
spec: {clusterIPs: [198.19.0.99], ports: [{port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIPs: [198.19.0.10], ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-4, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [198.18.2.2], nodeName: node-2}]
---
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: default}
spec: {clusterIPs: [198.19.0.77], internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cache-4, namespace: default, labels: {kubernetes.io/service-name: cache}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [198.18.2.2], nodeName: node-2}]
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: default}
spec:
  clusterIPs: [198.19.0.53]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-4, namespace: default, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [198.18.1.3], nodeName: node-1}, {addresses: [198.18.2.2], nodeName: node-2}]
YAML
until_on node-1 'twill flows --service default/dns'
until_on node-2 'twill flows --service default/dns'

problem '11. A Service that nobody serves' 'It has no endpoint that is ready. The client is rejected at once: the flow hands the packet to the host, with the source MAC 0e:77:00:00:00:03.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=service | grep 'nw_dst=198.19.0.99'"
on node-1 3 'twill why default/web service/default/nobody'

problem '12. A port that the Service does not have' 'Its address is known, and no flow has the port.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=service | grep 'nw_dst=198.19.0.10'"
on node-1 3 'twill why default/web service/default/db --proto tcp --port 80'

problem '13. A Service with endpoints, and this node gets none' 'internalTrafficPolicy is Local, and they are all elsewhere.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=service | grep 'nw_dst=198.19.0.77'"
on node-1 3 'twill why default/web service/default/cache'

problem '14. Which endpoint does a client get?' 'A packet of web has been to a Service with session affinity, which remembers for 10 minutes whom it got.'
l exec web -- bash -c 'exec 3<>/dev/udp/198.19.0.53/53 && echo hello >&3'
until_on node-1 'ovs-ofctl -O OpenFlow15 dump-flows br-twill table=42 | grep -q nw_src=198.18.1.2'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=sticky | grep 'nw_dst=198.19.0.53'"
on node-1 0 'twill why default/web service/default/dns'

l apply -f - >/dev/null <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-allow, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-telnet}
spec:
  tier: Admin
  priority: 5
  subject: {namespaces: {}}
  ingress: [{name: telnet, action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}]
YAML
until_on node-1 'twill flows --policy no-telnet'
until_on node-2 'twill flows --policy default/db-allow'

problem '15. A policy denies what comes through a Service' 'api asks the Service db, and the policy of its endpoint on the other node does not allow it.'
on node-2 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=ingress | grep 'actions=drop'"
on node-1 3 'twill why default/api service/default/db'
on node-1 0 'twill why default/web service/default/db'

problem '16. A policy of the cluster denies' 'ClusterNetworkPolicy no-telnet, for all pods. Conditions meet in a conjunction; the flow with its conj_id is the rule.'
on node-1 0 "ovs-ofctl -O OpenFlow15 --names dump-flows br-twill table=ingress-admin | grep 'conj_id='"
on node-1 3 'twill why default/web default/api --proto tcp --port 23'
on node-1 0 'twill flows --policy no-telnet'

problem '17. What exactly was dropped a moment ago?' 'The flow that the datapath made for the first such packet still has it whole.'
l exec web -- ping -q -c 200 -i 0.3 -W 1 198.18.1.77 >/dev/null 2>&1 &
ping=$!
until_on node-1 'twill drops | grep -q "like it"'
on node-1 0 "ovs-appctl dpctl/dump-flows -m | grep 'actions:drop' | grep -o 'ipv4(src=198.18.1.2.*'"
on node-1 0 "twill drops | grep -A1 no-such-pod"
kill "$ping"
wait "$ping" 2>/dev/null || true

cp -r "${TWILL_LAB_DIR:-/run/twill-lab}/$lab/manifests" "$saved/"
problem '18. Only files are left' 'What `ovs-ofctl` printed, and the objects as `kubectl get -o yaml` prints them. The packet goes through a private Open vSwitch that holds the saved flows.'
on node-1 0 "cd $saved && ovs-ofctl -O OpenFlow15 dump-flows br-twill > flows.txt && ovs-ofctl -O OpenFlow15 dump-groups br-twill > groups.txt && ls . manifests"
on node-1 3 "cd $saved && twill why default/web service/default/nobody --dump flows.txt --groups groups.txt --manifests manifests"
on node-1 0 "cd $saved && twill verify --dump flows.txt --groups groups.txt --manifests manifests"
