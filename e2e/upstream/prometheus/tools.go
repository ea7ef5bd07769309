//go:build tools

// Package prometheus pins Prometheus (`cargo e2e compatibility`).
package prometheus

import (
	_ "github.com/prometheus/prometheus/cmd/prometheus"
)
