//go:build tools

// Package rollouts pins argo-rollouts, which works on ReplicaSets beside our deployment controller (`cargo e2e compatibility`).
package rollouts

import (
	_ "github.com/argoproj/argo-rollouts/cmd/rollouts-controller"
)
