//go:build tools

// Package addons pins the programs that the test cluster needs beside Kubernetes: CoreDNS (the
// command in ./coredns) and crane, whose registry serves the images.
package addons

import _ "github.com/google/go-containerregistry/cmd/crane"
