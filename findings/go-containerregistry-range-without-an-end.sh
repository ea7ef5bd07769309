#!/usr/bin/env bash
# The registry of go-containerregistry (`crane registry serve`) refuses a range without an end: who goes on with a download that was cut
# asks for "bytes=N-" and is told 416, although the blob is there and longer.
#
# go-containerregistry v0.22.1, pkg/registry: the header is read by the pattern "bytes=%d-%d" alone. RFC 9110 (14.1.2) knows a range
# whose last position is left out; it is how clients of registries go on. 416 is for ranges that lie outside of what there is, so that a
# client may take its part of the blob for more than the whole, and ask the same again for ever.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
cat > main.go <<'GO'
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	blob := []byte("0123456789")
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(blob))
	answer, err := http.Post(server.URL+"/v2/some/image/blobs/uploads/?digest="+digest, "application/octet-stream", bytes.NewReader(blob))
	if err != nil || answer.StatusCode != http.StatusCreated {
		panic(fmt.Sprint(answer, err))
	}
	for _, wanted := range []string{"bytes=4-9", "bytes=4-"} {
		request, err := http.NewRequest(http.MethodGet, server.URL+"/v2/some/image/blobs/"+digest, nil)
		if err != nil {
			panic(err)
		}
		request.Header.Set("Range", wanted)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			panic(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			panic(err)
		}
		if answer.StatusCode == http.StatusPartialContent {
			fmt.Printf("%s: %d %s\n", wanted, answer.StatusCode, body)
		} else {
			fmt.Printf("%s: %d\n", wanted, answer.StatusCode)
		}
	}
}
GO
{
  go mod init example.invalid/ranges
  go get github.com/google/go-containerregistry@v0.22.1
  go mod tidy
} > log 2>&1 || { cat log; exit 1; }
seen=$(go run . 2>log) || { cat log; exit 1; }
echo "$seen"
expected='bytes=4-9: 206 456789
bytes=4-: 416'
[ "$seen" = "$expected" ] || { echo "that has changed; it was:"; echo "$expected"; exit 1; }
