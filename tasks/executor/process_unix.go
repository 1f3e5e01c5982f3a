//go:build unix

package executor

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// newTaskLogOnDisk makes a file without a name.
func newTaskLogOnDisk() (*os.File, error) {
	f, err := os.CreateTemp("", "meshnode-log-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	return os.OpenFile(f.Name(), os.O_RDWR|os.O_APPEND, 0)
}

// tree is a worker process and what it has started: a process group.
type tree struct{ group atomic.Int64 }

// startTree starts p in a process group of its own, nice ones at the lowest priority: a busy program in the foreground is
// slowed 5.3 times by guests at normal priority, 1.25 times by guests at nice 19.
func startTree(p *process) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(p.cmd.SysProcAttr)
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.tree.group.Store(int64(p.cmd.Process.Pid))
	// Of the group, not the process: on Linux the priority belongs to a thread, and this reaches all of them.
	if !p.nice {
		return nil
	}
	if err := unix.Setpriority(unix.PRIO_PGRP, p.cmd.Process.Pid, 19); err != nil {
		p.log.logger.Debug("set priority", "err", err)
	}
	return nil
}

func (t *tree) kill() {
	if g := t.group.Load(); g != 0 {
		unix.Kill(-int(g), unix.SIGKILL) // an error means that nobody is left
	}
}

// close forgets the group: its number may be used again by others.
func (t *tree) close() { t.group.Store(0) }

// exitedWell is the ending of a process without an error.
const exitedWell = "exit code 0"

func ending(s *os.ProcessState) string {
	if w, ok := s.Sys().(syscall.WaitStatus); ok {
		return endingOf(w)
	}
	return fmt.Sprintf("exit code %d", s.ExitCode())
}

func endingOf(w syscall.WaitStatus) string {
	if w.Signaled() {
		return fmt.Sprintf("killed by signal %d (%v)", int(w.Signal()), w.Signal())
	}
	return fmt.Sprintf("exit code %d", w.ExitStatus())
}
