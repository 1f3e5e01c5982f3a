package executor

import "syscall"

// dieWithParent has the system kill the child when the thread that starts it ends: see starter.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
