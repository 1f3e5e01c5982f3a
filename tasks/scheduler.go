// Package tasks decides who runs what and when: the scheduler of one node, both as the origin of its own
// jobs and as a worker for others (and for itself).
//
// It is a pure state machine. Events go in with the time at which they happened, Ready comes out: what to
// write, send, start and tell, in that order. It has no goroutine, clock, file, socket or random source of its own
// but the one in Config, so equal events at equal times give equal bytes: whole meshes of it run in a simulator.
// Package node drives the real one.
//
// Time is int64 nanoseconds since an arbitrary start, from a monotonic clock. A Scheduler is not safe for
// concurrent use.
package tasks

import (
	"errors"
	"math/rand/v2"

	"meshnode/protocol"
)

// Errors of Step that a client can act on.
var (
	ErrNoJob   = errors.New("no such job")
	ErrGap     = errors.New("tasks before this index are missing")
	ErrTooMany = errors.New("too many tasks")
	ErrClosed  = errors.New("the job is closed")
	ErrRunning = errors.New("the job has not ended")
	ErrStopped = errors.New("the node is stopping")
)

// Config is what a Scheduler starts with. Self, Epoch, Incarnation, Key and Rand are required.
type Config struct {
	Self        protocol.NodeID
	Epoch       uint64     // higher than in any earlier life of this data directory, and already on disk
	Incarnation uint64     // random, of this process
	Key         [32]byte   // secret of this node, the same in every life: authenticates its grants
	Rand        *rand.Rand // jitter only
	Slots       int        // ≥ 0
	Runtimes    []string   // that can run here, as in Hello: "wasm"
}
