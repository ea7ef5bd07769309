//go:build tools

// Package etcd pins etcd's own tools, which take and restore snapshots, at the version of the etcd that a cluster runs.
package etcd

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
)
