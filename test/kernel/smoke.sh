#!/usr/bin/env bash
# smoke.sh [REGEXP]: the smoke test of a real Kubernetes (make e2e-smoke) on the kernel's datapath, inside a virtual
# machine, or the steps of it whose names match; each builds on those before. What has to be built is built outside.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=$PWD/bin/images # not below /tmp: the guest has one of its own
rm -rf "$images" && mkdir -p "$images"
go run ./test/cluster/run --build --images "$images"
CGO_ENABLED=0 go test -c -tags e2e -o bin/cluster.test ./test/cluster
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -o bin/kubectl-twill.test ./cmd/twill # so that the guest finds it in the cache
export VM_TIMEOUT=${VM_TIMEOUT:-10800} VM_MEMORY=${VM_MEMORY:-12288}
exec test/kernel/vm.sh env CI=true TWILL_SLOW=10 TWILL_CLUSTER_IMAGES="$images" \
  bash -c "cd '$PWD/test/cluster' && ../../bin/cluster.test -test.v -test.run 'TestSmoke${1:+/($1)}' -test.timeout 170m"
