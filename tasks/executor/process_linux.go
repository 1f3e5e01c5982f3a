package executor

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// newTaskLog makes a file in memory that everybody appends to who writes to it.
func newTaskLog() (*os.File, error) {
	fd, err := unix.MemfdCreate("task log", unix.MFD_CLOEXEC)
	if err != nil {
		return newTaskLogOnDisk()
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND|unix.O_RDWR); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "task log"), nil
}

// dieWithParent has the system kill the child when the thread that starts it ends: see starter.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
