//go:build unix

package main

import (
	"context"
	"fmt"
	"syscall"
)

// become is replaced by another program, which has our signals, files and exit code.
func (c *cli) become(_ context.Context, path string, args, env []string) error {
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, append([]string{path}, args...), env))
}
