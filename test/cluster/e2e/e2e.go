// Package e2e pins what Kubernetes' own end-to-end tests are built from: the tests, the program in the pods that they
// make, and the one that runs several at once. A module of its own, because few who work on the rest need it.
package e2e

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "k8s.io/kubernetes/test/e2e"
)
