package node

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleptSoFar is how long this machine has slept since it was started, at least: BOOTTIME goes on in a sleep, MONOTONIC does not.
// The one that goes on is read first: a pause between the two readings makes the difference smaller, never larger.
func sleptSoFar() time.Duration {
	var boot, mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - mono.Nano())
}

// awakeSince is the time since start without sleep: what Go's clock shows here.
func awakeSince(start time.Time) time.Duration { return time.Since(start) }
