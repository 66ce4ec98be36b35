#!/usr/bin/env bash
# The demo from nothing: packages, build, and then `twill-lab demo`. KEEP=1 leaves the lab up.
set -euo pipefail
cd "$(dirname "$0")/.."

# step NAME COMMAND…: one line when it is done, with its duration; its output when it failed.
step() {
  local name=$1 start=${EPOCHREALTIME/[.,]/} log
  shift
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    printf 'FAILED       %s\n' "$name" >&2
    exit 1
  fi
  rm -f "$log"
  local ms=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))
  printf 'ok %6d.%ds  %s\n' $((ms / 1000)) $((ms % 1000 / 100)) "$name"
}

[ "$(id -u)" -eq 0 ] || { echo "The demo makes network namespaces, and that needs root: run it with sudo." >&2; exit 1; }
step "packages that were missing are installed" test/deps.sh
step "twill, twill-cni and twill-lab are built" make --no-print-directory build
keep=()
case ${KEEP:-} in ''|0) ;; *) keep=(--keep) ;; esac
exec bin/twill-lab demo "${keep[@]}"
