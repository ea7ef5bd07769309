//go:build tools

// Package localpath pins the provisioner of node-local volumes, kind's default, with the libraries it was released with.
package localpath

import _ "github.com/rancher/local-path-provisioner"
