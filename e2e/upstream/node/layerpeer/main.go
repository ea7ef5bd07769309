// Command layerpeer unpacks stacks of layers with containerd's own applier, and lists trees, so that another unpacker
// can be held to it.
//
// Each line of the input is `apply`, a directory to make and the layers, lowest first; or `list` and a directory; with
// tabs between. The answer to apply is `ok`, or `error: ` and why; to list, a JSON list with one text a file.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

func main() {
	// Attributes that cannot be set are warned of one by one.
	if err := log.SetLevel("error"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	in := bufio.NewReader(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			return
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		fmt.Fprintln(out, answer(fields))
		out.Flush()
	}
}

func answer(fields []string) string {
	var text string
	var err error
	switch {
	case len(fields) >= 2 && fields[0] == "apply":
		text, err = "ok", apply(fields[1], fields[2:])
	case len(fields) == 2 && fields[0] == "list":
		text, err = list(fields[1])
	default:
		err = fmt.Errorf("unknown request %q", fields)
	}
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	return text
}

func apply(directory string, layers []string) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for _, layer := range layers {
		if err := applyOne(directory, layer); err != nil {
			return err
		}
	}
	return nil
}

func applyOne(directory, layer string) error {
	file, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := compression.DecompressStream(file)
	if err != nil {
		return err
	}
	defer plain.Close()
	if _, err := archive.Apply(context.Background(), directory, plain); err != nil {
		return err
	}
	// What follows the archive counts for its digest, so it must be readable.
	_, err = io.Copy(io.Discard, plain)
	return err
}

type inode struct {
	device, number uint64
}

// list tells all that can be seen of each file but its times of access and of change, and which files are one.
func list(root string) (string, error) {
	lines := []string{}
	first := map[inode]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		line := fmt.Sprintf("%q mode=%o uid=%d gid=%d mtime=%d.%09d", name, stat.Mode, stat.Uid, stat.Gid,
			stat.Mtim.Sec, stat.Mtim.Nsec)
		switch stat.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			sum, err := digest(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sha256=%s", stat.Size, sum)
		case unix.S_IFLNK:
			text, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" link=%q", text)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device=%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		}
		attributes, err := attributes(path)
		if err != nil {
			return err
		}
		line += attributes
		if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			id := inode{stat.Dev, stat.Ino}
			if other, known := first[id]; known {
				line += fmt.Sprintf(" same=%q", other)
			} else {
				first[id] = name
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(lines)
	return string(text), err
}

func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8]), nil
}

func attributes(path string) (string, error) {
	names := make([]byte, 1<<16)
	size, err := unix.Llistxattr(path, names)
	if err == unix.ENOTSUP || size == 0 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list attributes of %q: %w", path, err)
	}
	all := strings.Split(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00")
	sort.Strings(all)
	text := ""
	for _, name := range all {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 1<<16)
		count, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %q: %w", name, path, err)
		}
		text += fmt.Sprintf(" %s=%q", name, value[:count])
	}
	return text, nil
}
