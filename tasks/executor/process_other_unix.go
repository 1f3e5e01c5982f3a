//go:build unix && !linux

package executor

import "syscall"

// dieWithParent does nothing: there is no such signal here, and a worker process ends itself when its
// standard input does (see protocol/worker.go).
func dieWithParent(*syscall.SysProcAttr) {}
