//go:build tools

// Package prometheusoperator pins prometheus-operator, which makes StatefulSets of Prometheus (`cargo e2e compatibility`).
package prometheusoperator

import (
	_ "github.com/prometheus-operator/prometheus-operator/cmd/operator"
	_ "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader"
)
