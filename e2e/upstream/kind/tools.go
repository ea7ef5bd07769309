//go:build tools

// Package kind pins kind, which makes clusters whose nodes are containers (`cargo e2e kind`). Its module carries the base files of node images, too.
package kind

import _ "sigs.k8s.io/kind"
