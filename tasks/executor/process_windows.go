package executor

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// tree is a worker process and what it has started: a job object, which kills them when its last handle is
// closed, so also when the node dies.
type tree struct {
	mu  sync.Mutex // guards job
	job windows.Handle
}

// startTree starts p in a job object of its own, nice ones at the lowest priority.
func startTree(p *process) error {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return fmt.Errorf("create job object: %w", err)
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	if _, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info))); err != nil {
		windows.CloseHandle(job)
		return fmt.Errorf("set up job object: %w", err)
	}
	flags := uint32(windows.CREATE_NEW_PROCESS_GROUP)
	if p.nice {
		flags |= windows.IDLE_PRIORITY_CLASS
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: flags, HideWindow: true}
	if err := p.cmd.Start(); err != nil {
		windows.CloseHandle(job)
		return err
	}
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.cmd.Process.Pid))
	if err == nil {
		err = windows.AssignProcessToJobObject(job, h)
		windows.CloseHandle(h)
	}
	if err != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		windows.CloseHandle(job)
		return fmt.Errorf("put process into its job object: %w", err)
	}
	p.tree.job = job
	return nil
}

func (t *tree) kill() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.job != 0 {
		windows.TerminateJobObject(t.job, 1)
	}
}

// close gives the job object back; all processes in it are gone.
func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.job != 0 {
		windows.CloseHandle(t.job)
		t.job = 0
	}
}

// exitedWell is the ending of a process without an error.
const exitedWell = "exit code 0x0"

// newTaskLog makes none: a process makes one of its own here.
func newTaskLog() (*os.File, error) { return nil, nil }

// cutFile frees what a file has from a place on.
func cutFile(f *os.File, from, _ int64) error { return f.Truncate(from) }

func ending(s *os.ProcessState) string { return fmt.Sprintf("exit code %#x", uint32(s.ExitCode())) }
