// Package e2e pins what Kubernetes' own end-to-end tests are built from: the tests, the program in the pods that they
// make, the one that runs several at once, and Helm 3. A module of its own, because few who work on the rest need it.
package e2e

import _ "k8s.io/kubernetes/test/e2e"
