package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Load hands every record to f, in the order that tasks.Restore asks for: the epoch, the awake time, what was forgotten, then job by
// job its JobRecord, TasksRecords by First, ClosedRecord, GrantedRecords, DoneRecords by Seq, CancelRecord, TroubleRecords, EndedRecord, then
// the HeldRecords and AwayRecords. Records are f's to keep. It streams, and stops at f's first error, which it returns.
// TasksRecords may come in other portions than they were appended in.
// A value that cannot be read is an error that names its key. Call it before Run.
func (j *Journal) Load(f func(tasks.Record) error) error {
	if err := j.begin(); err != nil {
		return err
	}
	defer j.end()
	j.mu.Lock()
	epoch := j.epoch
	j.mu.Unlock()
	if epoch > 0 {
		if err := f(tasks.EpochRecord{Epoch: epoch}); err != nil {
			return err
		}
	}
	other := func(k, v []byte) error {
		r, err := decodeOther(k, v)
		if err != nil {
			return j.damaged(k, err)
		}
		return f(r)
	}
	if err := j.scan(keyAwake, []byte("mawake\x00"), other); err != nil {
		return err
	}
	if err := j.scan([]byte{kindGone}, []byte{kindGone + 1}, other); err != nil {
		return err
	}
	var job protocol.JobID
	opened := false // the JobRecord of job was there
	err := j.scan([]byte{kindJob}, []byte{kindJob + 1}, func(k, v []byte) error {
		r, err := decodeJobPart(k, v)
		if err != nil {
			return j.damaged(k, err)
		}
		if id := protocol.JobID(k[1:17]); id != job || !opened {
			if _, ok := r.(tasks.JobRecord); !ok {
				// Written after the job was forgotten: of no use to anybody, and no reason not to start.
				j.log.Warn("journal: record of an unknown job", "job", id, "record", describe(k))
				return nil
			}
			job, opened = id, true
		}
		return f(r)
	})
	if err != nil {
		return err
	}
	if err := j.scan([]byte{kindHeld}, []byte{kindHeld + 1}, other); err != nil {
		return err
	}
	return j.scan([]byte{kindAway}, []byte{kindAway + 1}, other)
}

func (j *Journal) damaged(k []byte, err error) error {
	return fmt.Errorf("journal %s: %s is damaged: %w", j.dir, describe(k), err)
}

// errStop ends a scan early, without an error.
var errStop = errors.New("stop")

// scan calls f with the keys from (included) to (excluded), whose bytes are good only during the call.
func (j *Journal) scan(from, to []byte, f func(k, v []byte) error) error {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.dir, err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			err = f(it.Key(), v)
		}
	}
	if err == errStop {
		err = nil
	}
	if cerr := it.Close(); cerr != nil && err == nil {
		err = fmt.Errorf("journal %s: %w", j.dir, cerr)
	}
	return err
}

// beginRead is begin for what must see all that was appended before; when the disk is full, what was written of that.
func (j *Journal) beginRead() error {
	if err := j.begin(); err != nil {
		return err
	}
	j.mu.Lock()
	n := j.appended
	j.mu.Unlock()
	if err := j.await(context.Background(), func() bool { return j.applied >= n || j.closed || j.Stalled() }); err != nil {
		j.end()
		return err
	}
	j.mu.Unlock()
	return nil
}

// Results are the job's results from the cursor on: those with Seq from, from+1, … as far as there are any, at most
// max of them, and no more after maxBytes of outputs and logs (but one at least). None: an empty slice.
// It holds nothing between calls, and writers never wait for it.
func (j *Journal) Results(job protocol.JobID, from uint64, max, maxBytes int) ([]*tasks.Done, error) {
	if from > math.MaxUint32 || max <= 0 {
		return nil, nil
	}
	if err := j.beginRead(); err != nil {
		return nil, err
	}
	defer j.end()
	var out []*tasks.Done
	size := 0
	err := j.scan(numberKey(nil, job, partDone, uint32(from)), jobKey(nil, job, partDone+1), func(k, v []byte) error {
		if len(k) != 22 {
			return j.damaged(k, errors.New("malformed key"))
		}
		d, err := decodeDone(binary.BigEndian.Uint32(k[18:]), v)
		if err != nil {
			return j.damaged(k, err)
		}
		out = append(out, d)
		if size += len(d.Outcome.Output) + len(d.Outcome.Log); size >= maxBytes || len(out) >= max {
			return errStop
		}
		return nil
	})
	return out, err
}

// Result is the one result with that Seq, or ErrNotFound.
func (j *Journal) Result(job protocol.JobID, seq uint32) (*tasks.Done, error) {
	if err := j.beginRead(); err != nil {
		return nil, err
	}
	defer j.end()
	k := numberKey(nil, job, partDone, seq)
	v, closer, err := j.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w", describe(k), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("journal %s: %s: %w", j.dir, describe(k), err)
	}
	defer closer.Close()
	d, err := decodeDone(seq, v)
	if err != nil {
		return nil, j.damaged(k, err)
	}
	return d, nil
}

// Inputs are up to n inputs of the job, from index first on, and no more after maxBytes of them (but one at least); fewer
// where the job has no more. ErrNotFound if it has none at first.
func (j *Journal) Inputs(job protocol.JobID, first uint32, n, maxBytes int) ([]tasks.Input, error) {
	if n <= 0 {
		return nil, nil
	}
	if err := j.beginRead(); err != nil {
		return nil, err
	}
	defer j.end()
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: jobKey(nil, job, partTasks), UpperBound: jobKey(nil, job, partTasks+1)})
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.dir, err)
	}
	defer it.Close()
	var out []tasks.Input
	next := uint64(first) // the index wanted now
	// The portion that has it begins at it or before; those after follow one another.
	size := 0
	for ok := it.SeekLT(numberKey(nil, job, partTasks, first+1)); ok && len(out) < n && (size < maxBytes || len(out) == 0); ok = it.Next() {
		k := it.Key()
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, fmt.Errorf("journal %s: %s: %w", j.dir, describe(k), err)
		}
		r, err := decodeJobPart(k, v)
		if err != nil {
			return nil, j.damaged(k, err)
		}
		portion := r.(tasks.TasksRecord)
		if next < uint64(portion.First) || next >= uint64(portion.First)+uint64(len(portion.Inputs)) {
			break
		}
		ins := portion.Inputs[next-uint64(portion.First):]
		few := len(ins) < len(portion.Inputs)/2 || n-len(out) < len(portion.Inputs)/2
		for _, in := range ins[:min(len(ins), n-len(out))] {
			if few { // they must not hold the whole portion in memory
				in.Data = bytes.Clone(in.Data)
			}
			if size >= maxBytes && len(out) > 0 {
				break
			}
			out = append(out, in)
			size += len(in.Data) + len(in.Blobs)*blobName
			next++
		}
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.dir, err)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("job %s, input %d: %w", job, first, ErrNotFound)
	}
	return out, nil
}
