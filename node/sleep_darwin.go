package node

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleptSoFar is how long this machine has slept since it was started, at least: MONOTONIC_RAW (mach_continuous_time) goes on in
// a sleep, UPTIME_RAW (mach_absolute_time) does not. The one that goes on is read first: a pause between the two
// readings makes the difference smaller, never larger.
func sleptSoFar() time.Duration {
	var all, awake unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &all) != nil || unix.ClockGettime(unix.CLOCK_UPTIME_RAW, &awake) != nil {
		return 0
	}
	return time.Duration(all.Nano() - awake.Nano())
}

// awakeSince is the time since start without sleep: what Go's clock shows here.
func awakeSince(start time.Time) time.Duration { return time.Since(start) }
