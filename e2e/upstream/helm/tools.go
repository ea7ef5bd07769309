//go:build tools

// Package helm pins Helm's two lines, by which people install the charts (`cargo e2e test helm`).
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "helm.sh/helm/v4/cmd/helm"
)
