#!/usr/bin/env bash
# Installs what Twill's tests, lab and demo need and this machine lacks. Nothing missing: nothing done,
# and no package index fetched. Open vSwitch's own service is not started: every node of the lab has an
# Open vSwitch of its own. A service that runs already is left alone. Arguments add what more is needed:
# cluster (a real Kubernetes).
set -euo pipefail

die() { echo "deps: $*" >&2; exit 1; }

command -v go >/dev/null || die "Go is not installed: get it from https://go.dev/dl and put its bin/ into PATH"

# A tool and the package that brings it.
missing=()
while read -r tool package; do
  command -v "$tool" >/dev/null || missing+=("$package")
done <<'TOOLS'
ovs-vswitchd openvswitch-switch
ip iproute2
nft nftables
ethtool ethtool
ping iputils-ping
conntrack conntrack
tcpdump tcpdump
iperf3 iperf3
git git
TOOLS
for more in "$@"; do
  case $more in
  cluster) tools=("etcd etcd-server" "containerd containerd" "runc runc" "busybox busybox-static" "nsenter util-linux") ;;
  *) die "what is $more? Say cluster" ;;
  esac
  for tool in "${tools[@]}"; do
    command -v "${tool% *}" >/dev/null || missing+=("${tool#* }")
  done
done
[ ${#missing[@]} -eq 0 ] && exit 0

command -v apt-get >/dev/null || die "these packages are missing, and there is no apt-get to install them with: ${missing[*]}"
[ "$(id -u)" -eq 0 ] || die "these packages are missing, and installing them needs root: ${missing[*]}"

# invoke-rc.d(8) asks this program before it starts a service. Where an administrator made one, theirs decides.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\n# Made by test/deps.sh while it installs packages; remove it.\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends "${missing[@]}"; }
echo "deps: installing ${missing[*]}"
log=$(mktemp)
if ! install >"$log" 2>&1; then
  # Most likely the package index is missing or old.
  { apt-get update -q && install; } >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; die "apt-get could not install ${missing[*]}"; }
fi
rm -f "$log"
