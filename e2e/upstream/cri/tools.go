//go:build tools

// Package cri pins the client of the Container Runtime Interface, and the suite that runtimes are held to. The blank imports keep
// `go mod tidy` from dropping them.
package cri

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
