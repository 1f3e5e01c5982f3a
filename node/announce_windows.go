package node

import (
	"context"
	"log/slog"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	powrprof             = windows.NewLazySystemDLL("powrprof.dll")
	registerSuspend      = powrprof.NewProc("PowerRegisterSuspendResumeNotification")
	unregisterSuspend    = powrprof.NewProc("PowerUnregisterSuspendResumeNotification")
	deviceNotifyCallback = uintptr(2)
)

// What the callback is told.
const (
	pbtSuspend         = 4
	pbtResumeSuspend   = 7
	pbtResumeAutomatic = 18
)

// announceSleep calls before when the machine is about to sleep, which waits some 2 s for it, and after when it is awake, until
// ctx ends. A machine in modern standby does not always say so; then the clocks tell.
func announceSleep(ctx context.Context, log *slog.Logger, before, after func()) error {
	if registerSuspend.Find() != nil {
		log.Info("sleep is not announced here: the clocks will tell")
		return nil
	}
	params := struct{ callback, context uintptr }{callback: syscall.NewCallback(func(_, what, _ uintptr) uintptr {
		switch what {
		case pbtSuspend:
			before()
		case pbtResumeAutomatic, pbtResumeSuspend:
			go after()
		}
		return 0
	})}
	var handle uintptr
	if r, _, _ := registerSuspend.Call(deviceNotifyCallback, uintptr(unsafe.Pointer(&params)), uintptr(unsafe.Pointer(&handle))); r != 0 {
		log.Info("sleep is not announced here: the clocks will tell", "err", syscall.Errno(r))
		return nil
	}
	<-ctx.Done()
	unregisterSuspend.Call(handle)
	runtime.KeepAlive(&params)
	return nil
}
