//go:build tools

// Package metricsserver pins metrics-server, which `kubectl top` and autoscalers ask (`cargo e2e compatibility`).
package metricsserver

import (
	_ "sigs.k8s.io/metrics-server/cmd/metrics-server"
)
