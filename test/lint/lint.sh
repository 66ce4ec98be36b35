#!/usr/bin/env bash
# Every rule that a machine can check. Usage: test/lint/lint.sh [CHECKOUT]
# All rules run even when the first is broken; the exit status says whether one was.
set -uo pipefail
shopt -s lastpipe # so that refuse, at the end of a pipe, can set bad
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "${1:-$here/../..}" && pwd)
tools="$here/../../tools/go.mod"
cd "$root" || exit 1

bad=0
# refuse RULE, and the offenders on stdin: nothing there is good.
refuse() {
  local found
  found=$(cat)
  [ -z "$found" ] && return
  printf 'lint: %s\n%s\n' "$1" "$(sed 's/^/  /' <<<"$found")" >&2
  bad=1
}

# What is or will be in the repository; outside of one, all files.
files() { git ls-files -co --exclude-standard -- "$@" 2>/dev/null || find . -path ./bin -prune -o -type f -printf '%P\n'; }
existing() { files "$@" | while read -r f; do [ -f "$f" ] && echo "$f"; done; }

# What a go command says of packages' names and of modules that it fetches is no finding.
findings() { grep -v '^#\|^go: downloading '; }

existing '*.go' | grep '\.go$' | xargs -r gofmt -l | refuse "not formatted: run gofmt -w on"
go vet ./... 2>&1 | findings | refuse "go vet"
# The tests on a real Kubernetes are behind a build tag; a checkout of the linters' own tests has none.
e2e=test/cluster
[ ! -d "$e2e" ] || go vet -tags e2e "./$e2e/..." 2>&1 | findings | refuse "go vet -tags e2e"

# The linters have a module of their own, so that nobody who imports Twill gets them.
bin="$root/bin/lint"
mkdir -p "$bin"
go build -modfile="$tools" -o "$bin/" honnef.co/go/tools/cmd/staticcheck github.com/OpenPeeDeeP/depguard/v2/cmd/depguard || exit 1
"$bin/staticcheck" ./... 2>&1 | findings | refuse "staticcheck"
[ ! -d "$e2e" ] || "$bin/staticcheck" -tags e2e "./$e2e/..." 2>&1 | findings | refuse "staticcheck -tags e2e"

# depguard reads its rules from the current directory, and that has to be inside the module.
sed "s|ROOT|$root|g" "$here/depguard.yml" >"$bin/.depguard.yml"
(cd "$bin" && ./depguard ../../... 2>&1) | findings | grep -v '^exit status' | sed "s|^$root/||" | refuse "an import that the layers do not allow"

existing '*.go' | grep '\.go$' | xargs -r wc -l | awk '$2 != "total" && $1 > 500 {print $2 " has " $1 " lines"}' |
  refuse "files of more than 500 lines want splitting by noun"

# Names of the machine that somebody works on do not help anybody else.
private=("$root" "$(dirname "$root")/" '[a-z0-9-]\.(internal|lan|corp)[/:]')
for url in $(go env GOPROXY | tr ',|' '  '); do
  case $url in *proxy.golang.org*|direct|off) ;; *) url=${url#*://} url=${url#*@}; private+=("${url%%/*}") ;; esac
done
patterns=()
for p in "${private[@]}"; do
  case $p in /|/root/|/home/|/tmp/|/src/) ;; *) patterns+=(-e "$p") ;; esac
done
existing | grep -v '^tools/go.sum$\|^go.sum$' | tr '\n' '\0' | xargs -0r grep -nIE "${patterns[@]}" | refuse "a path or host of one machine"
exit $bad
