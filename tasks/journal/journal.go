package journal

import (
	"context"
	"errors"
	"log/slog"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Config of a journal. The zero value works.
type Config struct {
	// Logger gets the store's own chatter at debug level, and what an operator should see at warn. Default: discards.
	Logger *slog.Logger
}

// ErrNotFound: the journal has no such job, task or result.
var ErrNotFound = errors.New("not in the journal")

// ErrClosed is returned by calls after Close.
var ErrClosed = errors.New("journal is closed")

// Journal is an open journal. Its methods may be called concurrently, but for the order that their
// comments ask for: Open, then Epoch, Key and Load, then Run, then Append.
type Journal struct{}

// Open opens the journal in dir, or creates it. The errors are one line for a person: it is in use by
// another process, was written by a newer version, is damaged, or the disk failed.
func Open(dir string, c Config) (*Journal, error) { return nil, ErrClosed }

// Epoch raises the epoch, syncs it and returns it: from 1, one more at each call. Once at each start, before Load.
func (j *Journal) Epoch() (uint64, error) { return 0, ErrClosed }

// Key is 32 random bytes, made with the journal and the same for ever: the origin's key for its MACs.
func (j *Journal) Key() [32]byte { return [32]byte{} }

// Load hands every record to f, in the order that tasks.Restore asks for: the epoch, then job by job its
// JobRecord, TasksRecords by First, ClosedRecord, GrantedRecords, DoneRecords by Seq, CancelRecord, then the
// HeldRecords. Records are f's to keep. It streams, and stops at f's first error, which it returns.
// TasksRecords may come in other portions than they were appended in.
// A value that cannot be read is an error that names its key. Call it before Run.
func (j *Journal) Load(f func(tasks.Record) error) error { return ErrClosed }

// Run writes what Append was given, syncs it and reports on Synced, until ctx is done; then it writes
// and syncs the rest and returns nil. If writing fails it returns the reason at once. Call it once.
func (j *Journal) Run(ctx context.Context) error { return ErrClosed }

// Append queues records as part of one atomic batch and returns its number; numbers rise by one with each call. It does
// not wait for the disk; it blocks only while 8 MiB are queued already. Batches are written in the order of the calls,
// and what the methods below read includes them.
// With sync the batch is synced at once, without it with a later one, or within 100 ms. No records and sync: all before is synced.
// The records are not kept. After the first failed write or sync every call returns that error.
// A record that cannot be encoded (invalid UTF-8 in a string, no such record) is an error of this call alone: nothing of it is written.
func (j *Journal) Append(records []tasks.Record, sync bool) (uint64, error) { return 0, ErrClosed }

// Synced delivers the number of the newest batch that is synced, and with it are all before. It holds
// only the newest number: one receiver, usually the node's loop.
func (j *Journal) Synced() <-chan uint64 { return nil }

// Wait waits until batch n is synced. Errors: ctx's, or that of the journal.
func (j *Journal) Wait(ctx context.Context, n uint64) error { return ErrClosed }

// Failed is closed at the first failed write or sync. Err has the reason. The process has to end: nothing
// is written any more, and what was reported as synced is on disk.
func (j *Journal) Failed() <-chan struct{} { return nil }

// Err is why the journal failed; nil while it works.
func (j *Journal) Err() error { return nil }

// Results are the job's results from the cursor on: those with Seq from, from+1, … as far as there are any, at most
// max of them, and no more after maxBytes of outputs and logs (but one at least). None: an empty slice.
// It holds nothing between calls, and writers never wait for it.
func (j *Journal) Results(job protocol.JobID, from uint64, max, maxBytes int) ([]*tasks.Done, error) {
	return nil, ErrClosed
}

// Result is the one result with that Seq, or ErrNotFound.
func (j *Journal) Result(job protocol.JobID, seq uint32) (*tasks.Done, error) { return nil, ErrClosed }

// Inputs are up to n inputs of the job, from index first on; fewer where the job has no more. ErrNotFound if it has none at first.
func (j *Journal) Inputs(job protocol.JobID, first uint32, n int) ([]tasks.Input, error) {
	return nil, ErrClosed
}

// Close closes the files. Call it after Run has returned; it waits for the other calls under way. After a failure it
// leaves the store as it is, for the process ends.
func (j *Journal) Close() error { return nil }
