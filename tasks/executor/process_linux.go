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

// cutFile frees what a file has between two places. Its size stays, if the system can do that: the worker process may have emptied
// the file meanwhile, for the next task.
func cutFile(f *os.File, from, to int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	if err != nil {
		return f.Truncate(from)
	}
	return nil
}

// dieWithParent has the system kill the child when the thread that starts it ends: see starter.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
