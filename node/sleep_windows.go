package node

import (
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	kernelbase                 = windows.NewLazySystemDLL("kernelbase.dll")
	queryInterruptTime         = kernelbase.NewProc("QueryInterruptTime")
	queryUnbiasedInterruptTime = kernelbase.NewProc("QueryUnbiasedInterruptTime")
)

// interruptTime reads one of the two clocks, which count 100 ns; 0: it is not there.
func interruptTime(p *windows.LazyProc) time.Duration {
	if p.Find() != nil {
		return 0
	}
	var t uint64
	p.Call(uintptr(unsafe.Pointer(&t)))
	return time.Duration(t) * 100
}

// sleptSoFar is how long this machine has slept since it was started, at least: the interrupt time goes on in a sleep, the
// unbiased one does not. The one that goes on is read first: a pause between the two readings makes the
// difference smaller, never larger.
func sleptSoFar() time.Duration {
	all := interruptTime(queryInterruptTime)
	awake := interruptTime(queryUnbiasedInterruptTime)
	if all == 0 || awake == 0 {
		return 0
	}
	return all - awake
}

// awakeSince is the time since start without sleep. Go's own clock goes on in a sleep here.
func awakeSince(start time.Time) time.Duration {
	if now := interruptTime(queryUnbiasedInterruptTime); now != 0 {
		return now - awakeStart
	}
	return time.Since(start)
}

// awakeStart makes times small: the scheduler's begin at about 0.
var awakeStart = interruptTime(queryUnbiasedInterruptTime)
