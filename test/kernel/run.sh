#!/usr/bin/env bash
# run.sh [PACKAGES [REGEXP]]: lab tests on the kernel's datapath inside a virtual machine. PACKAGES are directories of
# test/ (default: packets), one after the other in one machine. Its processor is emulated, so everything may take ten times as long there.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=${1:-packets}
script='failed=0;'
for p in $packages; do
  CGO_ENABLED=0 go test -c -o "bin/$p.test" "./test/$p"
  script+="cd '$PWD/test/$p' && ../../bin/$p.test -test.v -test.timeout 160m ${2:+-test.run '$2'} || failed=1;"
done
export VM_TIMEOUT=${VM_TIMEOUT:-10800}
exec test/kernel/vm.sh env CI=true TWILL_TEST_DATAPATH=system TWILL_SLOW=10 bash -c "$script exit \$failed"
