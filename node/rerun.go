package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Rerun is what Node.Rerun is to do.
type Rerun struct {
	ID       protocol.JobID // of the new job
	Failed   bool           // only the tasks that did not end well, cancelled ones included
	Detached bool
}

// rerunTasks is how many tasks are copied at a time: a portion of the journal.
const rerunTasks = 1024

// Rerun implements clientAPI.
func (n *Node) Rerun(ctx context.Context, of protocol.JobID, r Rerun) (Job, error) {
	if r.ID.IsZero() || r.ID == of {
		return Job{}, &Error{Code: CodeBadRequest, Message: "the new job has no id of its own"}
	}
	var st tasks.JobStatus
	var found bool
	if err := n.ask(func(s *tasks.Scheduler) { st, found = s.Job(of) }); err != nil {
		return Job{}, err
	}
	switch {
	case !found:
		return Job{}, jobError(fmt.Errorf("job %s: %w", of.Short(), tasks.ErrNoJob))
	case st.State < tasks.JobDone:
		return Job{}, &Error{Code: CodeRefused, Message: fmt.Sprintf("job %s has not ended", of.Short()), Fix: fmt.Sprintf("meshnode wait %s, or meshnode cancel %[1]s", of.Short())}
	}
	spec := specOf(st.Spec)
	spec.ID, spec.Detached, spec.RerunOf = r.ID, r.Detached, of
	again := func(uint32) bool { return true }
	if r.Failed {
		done, err := n.succeeded(ctx, of, st.Tasks)
		if err != nil {
			return Job{}, err
		}
		again = func(i uint32) bool { return !done[i] }
		if spec.Runs, err = part(st.Spec.Runs, st.Tasks, again); err != nil {
			return Job{}, err
		}
	}
	if err := n.OpenJob(ctx, spec); err != nil {
		if e := (*Error)(nil); errors.As(err, &e) && e.Code == CodeBadProgram {
			return Job{}, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("run job %s again: %s", of.Short(), e.Message), Fix: "the program was removed to make room: submit the job anew"}
		}
		return Job{}, err
	}
	count, err := n.copyTasks(ctx, of, st.Tasks, r.ID, again)
	if err == nil {
		err = n.CloseJob(ctx, r.ID, count)
	}
	if err != nil {
		if !errors.Is(err, errStopping) { // else its client repeats this
			n.step(tasks.Cancel{Job: r.ID, Reason: "its tasks could not be copied: " + err.Error()})
		}
		return Job{}, err
	}
	return n.Job(ctx, r.ID)
}

// specOf is the submission that a job came from.
func specOf(j *protocol.Job) JobSpec {
	s := JobSpec{
		Name: j.Name, Runtime: j.Program.GetRuntime(), Args: j.Program.GetArgs(), ClockReal: j.Program.GetClockReal(),
		Timeout: time.Duration(j.Limits.GetTimeoutUs()) * time.Microsecond, Memory: j.Limits.GetMemoryBytes(), MaxParallel: j.MaxParallel,
		Retries: j.Retries, Priority: int(j.Priority), Spare: j.Spare, HaltFailed: j.Halt.GetFailed(), HaltNow: j.Halt.GetNow(), Runs: j.Runs, Local: j.Local,
		Placement: Placement{On: j.Placement.GetOn(), LocalOnly: j.Placement.GetLocalOnly(), RemoteOnly: j.Placement.GetRemoteOnly()},
	}
	for _, id := range j.Placement.GetNot() {
		s.Placement.Not = append(s.Placement.Not, protocol.NodeID(id))
	}
	copy(s.Code[:], j.Program.GetCode().GetId())
	return s
}

// part are the runs of those of a job's tasks that are taken, in the list of which the job's tasks are some.
func part(runs []uint32, count uint32, taken func(index uint32) bool) ([]uint32, error) {
	numbers, err := protocol.NewNumbers(runs)
	if err != nil {
		return nil, err
	}
	index := uint32(0)
	places := uint32(0)
	if count > 0 {
		places = numbers.Of(count-1) + 1
	}
	return protocol.Runs(places, func(place uint32) bool {
		if numbers.Of(index) != place {
			return false
		}
		index++
		return taken(index - 1)
	}), nil
}

// succeeded says which of a job's tasks ended well.
func (n *Node) succeeded(ctx context.Context, job protocol.JobID, count uint32) ([]bool, error) {
	done := make([]bool, count)
	for from := uint64(0); ; {
		ds, err := n.journal.Results(job, from, watchBatch, watchBytes)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("read results of job %s: %w", job.Short(), err)
		}
		if len(ds) == 0 {
			return done, nil
		}
		for _, d := range ds {
			if d.Outcome.Status == protocol.Status_OK && d.Outcome.Index < count {
				done[d.Outcome.Index] = true
			}
		}
		from = uint64(ds[len(ds)-1].Seq) + 1
	}
}

// copyTasks adds tasks of an ended job to another, in their order, and returns how many they were.
func (n *Node) copyTasks(ctx context.Context, from protocol.JobID, count uint32, to protocol.JobID, taken func(uint32) bool) (copied uint32, err error) {
	for first := uint32(0); first < count; {
		if err := ctx.Err(); err != nil {
			return copied, err
		}
		ins, err := n.journal.Inputs(from, first, rerunTasks, inputBytes)
		if err != nil {
			return copied, fmt.Errorf("read inputs of job %s: %w", from.Short(), err)
		}
		var add []tasks.Input
		var pins pins
		for i, in := range ins {
			if !taken(first + uint32(i)) {
				continue
			}
			reads := in.Blobs
			if in.Blob != nil {
				reads = append(reads[:len(reads):len(reads)], in.Blob)
			}
			for _, b := range reads {
				id := protocol.BlobID(b.Id)
				if err := n.blobs.Pin(id); err != nil {
					pins.release(n.blobs)
					return copied, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("the input of task %d of job %s is not on this disk any more", first+uint32(i), from.Short()),
						Fix: "it was removed to make room: submit the job anew"}
				}
				pins.add(n.blobs, id)
			}
			add = append(add, in)
		}
		if err := n.addInputs(to, copied, add, pins); err != nil {
			return copied, err
		}
		copied += uint32(len(add))
		first += uint32(len(ins))
	}
	return copied, nil
}
