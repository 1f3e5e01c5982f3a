//go:build !linux && !darwin && !windows

package node

import "time"

// sleptSoFar is not known here: a sleep looks like a pause of the process.
func sleptSoFar() time.Duration { return 0 }

func awakeSince(start time.Time) time.Duration { return time.Since(start) }
