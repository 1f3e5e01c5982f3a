package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Do calls f on a thread of the host: the sockets that f itself opens (not its goroutines) belong to the host for as long
// as they live, wherever they are used.
func (h *Host) Do(f func() error) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	ns, err := os.Open("/run/netns/" + h.space)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter %s: %w", h.space, err)
			return
		}
		err := f()
		// The thread lives on: with it would end all that it has started before, see endWithParent.
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			panic(fmt.Sprintf("leave %s: %v", h.space, back))
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// endWithParent has the command end with this process: with the thread that starts it, which no thread but the last does before.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
