package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// When memory goes back to the system.
const (
	memoryLook = 5 * time.Second
	// quietBytes is the most that a node allocates in memoryLook while nothing happens: beats with 59 members are less (TestSixty).
	quietBytes = 4 << 20
	// busyBytes allocated since memory was last given back are worth a collection to see what of them is not used.
	busyBytes = 16 << 20
)

// giveBackMemory gives memory that is not used any more back to the system whenever the node has been busy and is quiet again, until ctx ends.
// serve runs it in a goroutine of its own, one for the process.
// Go does so by itself within some minutes. The owner of the machine should not have to wait for it: a node that was busy with coming
// into a mesh of sixty has 5 MB less then.
func giveBackMemory(ctx context.Context) {
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	var q quiet
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(allocated)
		if q.after(allocated[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}

// quiet finds the times at which memory is given back.
type quiet struct {
	last  uint64 // allocated at the last look
	given uint64 // and when memory was last given back
}

// after reports whether this is one, with so much allocated since the program began.
func (q *quiet) after(allocated uint64) bool {
	busy := allocated-q.last > quietBytes
	q.last = allocated
	if busy || allocated-q.given < busyBytes {
		return false
	}
	q.given = allocated
	return true
}
