#!/usr/bin/env bash
# The lab tests (test/packets) with --datapath system inside a virtual machine. Its processor is emulated, so
# everything may take ten times as long there.
set -euo pipefail
cd "$(dirname "$0")/../.."
CGO_ENABLED=0 go test -c -o bin/packets.test ./test/packets
cd test/packets
exec ../kernel/vm.sh env CI=true TWILL_TEST_DATAPATH=system TWILL_SLOW=10 \
  ../../bin/packets.test -test.v -test.timeout 80m ${1:+-test.run "$1"}
