//go:build tools

// Package descheduler pins the descheduler, which evicts pods that another node suits better (`cargo e2e compatibility`).
package descheduler

import (
	_ "sigs.k8s.io/descheduler/cmd/descheduler"
)
