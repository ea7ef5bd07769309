//go:build tools

// Package upstream pins the API server of the minor version before ours, and
// the suite that belongs to it. The blank imports keep `go mod tidy` from
// dropping them.
package upstream

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/test/e2e"
)
