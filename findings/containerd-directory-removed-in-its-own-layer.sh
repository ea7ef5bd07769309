#!/usr/bin/env bash
# A layer that lists a directory and, further down, removes it again by a whiteout cannot be applied by containerd; one that does the
# same with a file can.
#
# containerd v2.4.2, pkg/archive: the times of directories are set when the whole layer has been read, from a list that a whiteout does
# not shorten. What was removed meanwhile is looked for, and the layer is refused with ENOENT. OCI's image specification says that a
# whiteout hides what lower layers have; it does not forbid one beside an entry of its own layer.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
cat > main.go <<'GO'
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func layer(first tar.Header) *bytes.Buffer {
	out := new(bytes.Buffer)
	writer := tar.NewWriter(out)
	for _, header := range []tar.Header{first, {Name: ".wh.it", Mode: 0o644, Typeflag: tar.TypeReg}} {
		if err := writer.WriteHeader(&header); err != nil {
			panic(err)
		}
	}
	if err := writer.Close(); err != nil {
		panic(err)
	}
	return out
}

func main() {
	for _, kind := range []struct {
		name   string
		header tar.Header
	}{
		{"file", tar.Header{Name: "it", Mode: 0o644, Typeflag: tar.TypeReg}},
		{"directory", tar.Header{Name: "it/", Mode: 0o755, Typeflag: tar.TypeDir}},
	} {
		root, err := os.MkdirTemp(".", kind.name)
		if err != nil {
			panic(err)
		}
		_, err = archive.Apply(context.Background(), root, layer(kind.header))
		_, left := os.Lstat(root + "/it")
		fmt.Printf("%s: applied %t, not found %t, gone %t\n", kind.name, err == nil, errors.Is(err, fs.ErrNotExist), left != nil)
	}
}
GO
{
  go mod init example.invalid/layer
  go get github.com/containerd/containerd/v2@v2.4.2
  go mod tidy
} > log 2>&1 || { cat log >&2; exit 1; }
seen=$(go run .)
echo "$seen"
[ "$seen" = "file: applied true, not found false, gone true
directory: applied false, not found true, gone true" ] || { echo "containerd does otherwise now" >&2; exit 1; }
