//go:build tools

// Package kueue pins kueue, which queues jobs by quotas (`cargo e2e compatibility`).
package kueue

import (
	_ "sigs.k8s.io/kueue/cmd/kueue"
)
