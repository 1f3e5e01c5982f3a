package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// dataFormat is the version of what a data directory holds. Within one, files and fields may come that an older program can
	// leave alone; what it must not leave alone, or cannot read, makes the next. A directory without a formatFile has format 1;
	// 2 is the first that may hold revocations, which a program of format 1 would not heed.
	dataFormat = 2
	formatFile = "format"
)

// checkFormat refuses a data directory that a newer program has written, and takes over one of an older.
func checkFormat(dir string) error {
	path := filepath.Join(dir, formatFile)
	b, err := os.ReadFile(path)
	if err == nil {
		v, err := strconv.Atoi(strings.TrimSpace(string(b[:min(len(b), 20)])))
		switch {
		case err != nil || v < 1:
			return &Error{Code: CodeRefused, Message: fmt.Sprintf("%s says no format of a data directory", path), Fix: "restore it, or remove it if no newer meshnode has used this directory"}
		case v > dataFormat:
			return &Error{Code: CodeRefused, Message: fmt.Sprintf("the data directory %s has format %d, of a newer meshnode; this one knows formats up to %d", dir, v, dataFormat),
				Fix: "update meshnode, or choose another directory with --data-dir"}
		case v == dataFormat:
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the format of the data directory: %w", err)
	}
	// What there is of an older one is read as it is. The number is there as a whole or not at all.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+formatFile+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write the format of the data directory: %w", err)
	}
	_, err = fmt.Fprintln(f, dataFormat)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write the format of the data directory: %w", err)
	}
	return nil
}
