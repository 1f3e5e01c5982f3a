package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

const (
	// clientGrace is how long an attached job waits for its client to come back.
	clientGrace = 10 * time.Second
	// watchBytes of results wait in memory for a slow client; the rest is read from the journal again.
	watchBytes = 1 << 20
	watchBatch = 1024
	// inputBytes of inputs are read at once for a client.
	inputBytes = 64 << 20
)

// jobWatch is what the loop knows of a job for its clients. Only the loop touches it.
type jobWatch struct {
	id       protocol.JobID
	watchers []*watcher
	gone     *time.Timer       // runs while an attached job has no client
	pins     pins              // its program, large inputs, and what its tasks read, until it ends
	accepted []chan<- struct{} // told when its close, and all before it, is accepted
}

// job is the jobWatch of a job, made at the first mention.
func (l *loop) job(id protocol.JobID) *jobWatch {
	j := l.jobs[id]
	if j == nil {
		j = &jobWatch{id: id}
		l.jobs[id] = j
	}
	return j
}

// abandon gives the client of an attached job its grace to come (back).
func (j *jobWatch) abandon(l *loop) {
	if len(j.watchers) > 0 {
		return
	}
	if j.gone != nil {
		j.gone.Stop()
	}
	n, id := l.n, j.id
	var mine *time.Timer
	mine = time.AfterFunc(clientGrace, func() {
		n.do(func(s *tasks.Scheduler) {
			if j.gone != mine || len(j.watchers) > 0 {
				return
			}
			if st, ok := s.Job(id); ok && st.State < tasks.JobDone && !st.Spec.Detached {
				n.log.Info("attached job cancelled: its client is gone", "job", id)
				s.Step(l.now(), tasks.Cancel{Job: id, Reason: "its client is gone"})
			}
		})
	})
	j.gone = mine
}

// pinRestored keeps what a restored record needs from being evicted.
func (l *loop) pinRestored(r tasks.Record) {
	pin := func(b *protocol.Blob) {
		if id, err := protocol.BlobIDFrom(b.GetId()); b != nil && err == nil {
			if err := l.n.blobs.Pin(id); err != nil {
				l.n.log.Warn("blob of an earlier run is missing", "blob", id, "err", err)
			}
		}
	}
	pinFor := func(job protocol.JobID, b *protocol.Blob) {
		if id, err := protocol.BlobIDFrom(b.GetId()); b != nil && err == nil && l.n.blobs.Pin(id) == nil {
			l.job(job).pins.add(l.n.blobs, id)
		}
	}
	switch r := r.(type) {
	case tasks.JobRecord:
		if id, err := protocol.JobIDFrom(r.Spec.Job); err == nil {
			pinFor(id, r.Spec.Program.GetCode())
		}
	case tasks.TasksRecord:
		for _, in := range r.Inputs {
			pinFor(r.Job, in.Blob)
			for _, b := range in.Blobs {
				pinFor(r.Job, b)
			}
		}
	case tasks.DoneRecord:
		pin(r.Done.Outcome.OutputBlob)
		pin(r.Done.Outcome.LogBlob)
	case tasks.HeldRecord:
		pin(r.Outcome.OutputBlob)
		pin(r.Outcome.LogBlob)
	}
}

// releaseInputs lets go of a job's program and inputs.
func (l *loop) releaseInputs(id protocol.JobID) {
	if j := l.jobs[id]; j != nil {
		j.pins.release(l.n.blobs)
	}
}

// notice tells a job's clients what happened.
func (l *loop) notice(nt tasks.Notice) {
	j := l.job(nt.Job)
	switch nt.Kind {
	case tasks.Accepted:
		if nt.Closed { // not by what tasks before it are answered, which may be on disk earlier
			for _, c := range j.accepted {
				close(c)
			}
			j.accepted = nil
		}
	case tasks.TaskDone:
		for _, w := range j.watchers {
			w.add(nt.Done)
		}
	case tasks.JobEnded:
		for _, w := range j.watchers {
			w.end()
		}
	}
	if nt.Kind != tasks.TaskDone {
		l.tidy(nt.Job)
	}
}

// tidy lets go of what only a job that goes on needs, and of the jobWatch once nobody waits for the job.
func (l *loop) tidy(id protocol.JobID) {
	j := l.jobs[id]
	if spec, ended := l.scheduler.Spec(id); j == nil || spec != nil && !ended {
		return
	}
	l.releaseInputs(id)
	if j.gone != nil {
		j.gone.Stop()
		j.gone = nil
	}
	if len(j.watchers) == 0 && len(j.accepted) == 0 {
		delete(l.jobs, id)
	}
}

// watcher gathers a job's results for one client.
type watcher struct {
	mu    sync.Mutex // guards what follows
	next  uint32     // seq of the next result to deliver
	buf   []*tasks.Done
	bytes int
	total uint32 // results there are
	ended bool
	wake  chan struct{} // has room for one
}

func (w *watcher) add(d *tasks.Done) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total = d.Seq + 1
	// In order, and as long as the client keeps up; else it reads from the journal.
	if d.Seq == w.next+uint32(len(w.buf)) && w.bytes < watchBytes {
		w.buf = append(w.buf, d)
		w.bytes += len(d.Outcome.Output) + len(d.Outcome.Log) + 64
	}
	w.signal()
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be delivered now, or says that it is in the journal, or that all is delivered.
func (w *watcher) take() (ds []*tasks.Done, from uint32, inJournal, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ds, w.buf, w.bytes = w.buf, nil, 0
	from = w.next
	w.next += uint32(len(ds))
	return ds, from, len(ds) == 0 && w.next < w.total, len(ds) == 0 && w.ended && w.next >= w.total
}

func (w *watcher) delivered(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next += uint32(n)
	w.buf, w.bytes = nil, 0 // not in order any more
}

// Watch implements clientAPI.
func (n *Node) Watch(ctx context.Context, job protocol.JobID, cursor uint32, most uint64, deliver func([]TaskResult) error) (Job, error) {
	w := &watcher{next: cursor, wake: make(chan struct{}, 1)}
	found := false
	err := n.ask(func(s *tasks.Scheduler) {
		st, ok := s.Job(job)
		if found = ok; !ok {
			return
		}
		w.total, w.ended = s.Ended(job), st.State >= tasks.JobDone
		j := n.loop.job(job)
		j.watchers = append(j.watchers, w)
		s.Step(n.loop.now(), tasks.Watching{Job: job, Count: len(j.watchers)})
	})
	if err != nil {
		return Job{}, err
	}
	if !found {
		return Job{}, jobError(fmt.Errorf("job %s: %w", job.Short(), tasks.ErrNoJob))
	}
	defer n.do(func(s *tasks.Scheduler) {
		j := n.loop.jobs[job]
		if j == nil {
			return
		}
		j.watchers = slices.DeleteFunc(j.watchers, func(x *watcher) bool { return x == w })
		s.Step(n.loop.now(), tasks.Watching{Job: job, Count: len(j.watchers)})
		if st, ok := s.Job(job); ok && st.State < tasks.JobDone && !st.Spec.Detached {
			j.abandon(&n.loop)
		}
		n.loop.tidy(job)
	})
	for {
		ds, from, inJournal, ended := w.take()
		if inJournal {
			if ds, err = n.journal.Results(job, uint64(from), watchBatch, watchBytes); err != nil {
				return Job{}, fmt.Errorf("read results of job %s: %w", job.Short(), err)
			}
			w.delivered(len(ds))
			if len(ds) == 0 { // not written yet, for the disk is full; or forgotten
				if _, err := n.Job(ctx, job); err != nil {
					return Job{}, err
				}
				select {
				case <-time.After(100 * time.Millisecond):
					continue
				case <-ctx.Done():
					return Job{}, ctx.Err()
				case <-n.ctx.Done():
					return Job{}, ErrWatchLost
				}
			}
		}
		if len(ds) > 0 {
			if err := n.deliver(ds, min(most, protocol.MaxOutput), deliver); err != nil {
				return Job{}, err
			}
			continue
		}
		if ended {
			return n.Job(ctx, job)
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Job{}, ctx.Err()
		case <-n.ctx.Done():
			return Job{}, ErrWatchLost
		}
	}
}

// deliver hands results over in portions whose outputs have watchBytes, or one larger one: those in blobs are only read now.
func (n *Node) deliver(ds []*tasks.Done, most uint64, to func([]TaskResult) error) error {
	for len(ds) > 0 {
		k, size := 0, uint64(0)
		for k < len(ds) {
			o := ds[k].Outcome
			size += uint64(len(o.Output)+len(o.Log)) + o.LogBlob.GetSize()
			if b := o.OutputBlob.GetSize(); b <= most {
				size += b
			}
			if k > 0 && size > watchBytes {
				break
			}
			k++
		}
		rs, err := n.results(ds[:k], most)
		if err != nil {
			return err
		}
		if err := to(rs); err != nil {
			return err
		}
		ds = ds[k:]
	}
	return nil
}

// results turns the scheduler's outcomes into a client's, with outputs of up to most bytes.
func (n *Node) results(ds []*tasks.Done, most uint64) ([]TaskResult, error) {
	rs := make([]TaskResult, len(ds))
	names := map[protocol.NodeID]string{}
	for i, d := range ds {
		o := d.Outcome
		name, ok := names[d.Worker]
		if !ok {
			name = n.nameOf(d.Worker)
			names[d.Worker] = name
		}
		rs[i] = TaskResult{
			Seq: d.Seq, Index: o.Index, Status: o.Status, ExitCode: o.ExitCode, Error: o.Error,
			Output: o.Output, Log: o.Log, Worker: d.Worker, Name: name, Attempts: d.Attempts,
			Queued: time.Duration(o.QueuedUs) * time.Microsecond, Run: time.Duration(o.RunUs) * time.Microsecond,
		}
		for _, b := range []struct {
			blob *protocol.Blob
			to   *[]byte
		}{{o.OutputBlob, &rs[i].Output}, {o.LogBlob, &rs[i].Log}} {
			if b.blob == nil {
				continue
			}
			if b.blob == o.OutputBlob && b.blob.Size > most {
				rs[i].OutputBlob = b.blob
				continue
			}
			var err error
			if *b.to, err = n.readBlob(b.blob); err != nil {
				return nil, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("output of task %d cannot be read: %v", o.Index, err), Fix: "is the disk of this node whole? submit the job again"}
			}
		}
	}
	return rs, nil
}

// Jobs implements clientAPI.
func (n *Node) Jobs(ctx context.Context) ([]Job, error) {
	var all []tasks.JobStatus
	if err := n.ask(func(s *tasks.Scheduler) { all = s.Jobs() }); err != nil {
		return nil, err
	}
	jobs := make([]Job, len(all))
	for i, st := range all {
		jobs[i] = n.jobOf(st)
	}
	slices.SortStableFunc(jobs, func(a, b Job) int { return b.Submitted.Compare(a.Submitted) })
	return jobs, nil
}

// Job implements clientAPI.
func (n *Node) Job(ctx context.Context, job protocol.JobID) (Job, error) {
	var st tasks.JobStatus
	var ok bool
	if err := n.ask(func(s *tasks.Scheduler) { st, ok = s.Job(job) }); err != nil {
		return Job{}, err
	}
	if !ok {
		return Job{}, jobError(fmt.Errorf("job %s: %w", job.Short(), tasks.ErrNoJob))
	}
	j := n.jobOf(st)
	j.Runs = st.Spec.Runs
	return j, nil
}

func (n *Node) jobOf(st tasks.JobStatus) Job {
	j := Job{
		ID: st.ID.String(), Name: st.Spec.Name, Runtime: st.Spec.Program.GetRuntime(), State: st.State.String(), Tasks: st.Tasks, Done: st.Done, Failed: st.Failed,
		Running: st.Running, Pending: st.Pending, Submitted: time.UnixMilli(st.Spec.SubmittedUnixMs), Reason: st.Reason,
		Detached: st.Spec.Detached, ElapsedMS: float64(st.Elapsed) / 1e6,
		Attempts: st.Attempts, Stolen: st.Stolen, Reissued: st.Reissued, Spares: st.Spares, Peers: []JobShare{},
		Halted: st.Halted, Retries: st.Spec.Retries, Priority: int(st.Spec.Priority),
	}
	j.WaitsFor = st.Wait.Code
	if id, err := protocol.JobIDFrom(st.Spec.RerunOf); err == nil {
		j.RerunOf = id.String()
	}
	for _, sh := range st.Shares {
		j.Peers = append(j.Peers, JobShare{Peer: string(sh.Worker), Name: n.nameOf(sh.Worker), Tasks: sh.Tasks, BusyMS: float64(sh.Busy) / 1e6})
	}
	return j
}

// Inputs implements clientAPI.
func (n *Node) Inputs(ctx context.Context, job protocol.JobID, first uint32, count int) ([][]byte, error) {
	ins, err := n.journal.Inputs(job, first, count, inputBytes)
	if err != nil {
		return nil, fmt.Errorf("read inputs of job %s: %w", job.Short(), err)
	}
	out := make([][]byte, len(ins))
	size := uint64(0)
	for i, in := range ins {
		if size += uint64(len(in.Data)) + in.Blob.GetSize(); size > inputBytes && i > 0 {
			return out[:i], nil
		}
		if out[i] = in.Data; in.Blob != nil {
			if out[i], err = n.readBlob(in.Blob); err != nil {
				out[i] = nil // evicted after the job ended; its result is what counts
			}
		}
	}
	return out, nil
}

// Result implements clientAPI.
func (n *Node) Result(ctx context.Context, job protocol.JobID, index uint32) (TaskResult, bool, error) {
	var seq uint32
	var ended, found bool
	err := n.ask(func(s *tasks.Scheduler) {
		seq, ended = s.Seq(job, index)
		_, found = s.Job(job)
	})
	switch {
	case err != nil:
		return TaskResult{}, false, err
	case !found:
		return TaskResult{}, false, jobError(fmt.Errorf("job %s: %w", job.Short(), tasks.ErrNoJob))
	case !ended:
		return TaskResult{}, false, nil
	}
	d, err := n.journal.Result(job, seq)
	if err != nil {
		return TaskResult{}, false, fmt.Errorf("read result of task %d of job %s: %w", index, job.Short(), err)
	}
	rs, err := n.results([]*tasks.Done{d}, protocol.MaxOutput)
	if err != nil {
		return TaskResult{}, false, err
	}
	return rs[0], true, nil
}
