//go:build unix && !linux

package executor

import (
	"os"
	"syscall"
)

// newTaskLog makes a file that everybody appends to who writes to it.
func newTaskLog() (*os.File, error) { return newTaskLogOnDisk() }

// cutFile frees what a file has from a place on.
func cutFile(f *os.File, from, _ int64) error { return f.Truncate(from) }

// dieWithParent does nothing: there is no such signal here, and a worker process ends itself when its
// standard input does (see protocol/worker.go).
func dieWithParent(*syscall.SysProcAttr) {}
