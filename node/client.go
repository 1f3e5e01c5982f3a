package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/blob"
)

const (
	// clientGrace is how long an attached job waits for its client to come back.
	clientGrace = 10 * time.Second
	// watchBytes of results wait in memory for a slow client; the rest is read from the journal again.
	watchBytes = 1 << 20
	watchBatch = 1024
	// inputBytes of inputs are read at once for a client.
	inputBytes = 64 << 20
	// roomFor is how long the disk is not asked again for its room: calls that come one by one would ask some thousand times in a
	// second, and meanwhile a client sends less than the room that is kept free.
	roomFor = 20 * time.Millisecond
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

var _ clientAPI = (*Node)(nil)

// jobError makes a person's error of what the scheduler refused.
func jobError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tasks.ErrNoJob):
		return &Error{Code: CodeNoJob, Message: err.Error(), Fix: "meshnode jobs -a lists the jobs of this node"}
	case errors.Is(err, tasks.ErrNoTask):
		return &Error{Code: CodeNoTask, Message: err.Error(), Fix: "tasks count from 0"}
	case errors.Is(err, tasks.ErrForgotten):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "submit it as a new job; ended jobs are kept as long as meshnode up --retain says"}
	case errors.Is(err, tasks.ErrStopped):
		return errStopping
	case errors.Is(err, tasks.ErrGap), errors.Is(err, tasks.ErrTooMany), errors.Is(err, tasks.ErrClosed), errors.Is(err, tasks.ErrPlacement), errors.Is(err, tasks.ErrRunning):
		return &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	return err
}

// OpenJob implements clientAPI.
func (n *Node) OpenJob(ctx context.Context, spec JobSpec) error {
	rt := n.runtimes[strings.TrimRight(spec.Runtime, "0123456789.")]
	if rt == nil {
		return &Error{Code: CodeBadProgram, Message: fmt.Sprintf("no runtime %q in this version", spec.Runtime), Fix: "this version runs wasm modules and Python functions"}
	}
	if spec.ID.IsZero() {
		return &Error{Code: CodeBadRequest, Message: "the job has no id"}
	}
	if len(spec.Name) > protocol.MaxName || !utf8.ValidString(spec.Name) {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("job name: want UTF-8 of at most %d bytes", protocol.MaxName)}
	}
	words := 0
	for _, a := range spec.Args {
		words += len(a) + 8
		if !utf8.ValidString(a) {
			return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("argument %q is not UTF-8", a)}
		}
	}
	if words > protocol.MaxControl/2 {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("the arguments have more than %d bytes", protocol.MaxControl/2), Fix: "give large data as inputs"}
	}
	if err := spec.check(); err != nil {
		return err
	}
	if err := n.blobs.Pin(spec.Code); err != nil {
		return &Error{Code: CodeBadProgram, Message: "the program is not on this node", Fix: "send it first"}
	}
	kept := false
	defer func() {
		if !kept {
			n.blobs.Unpin(spec.Code)
		}
	}()
	path, err := n.blobs.Path(spec.Code)
	if err == nil && spec.Detached {
		err = n.blobs.Sync(spec.Code)
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", spec.Code, err)
	}
	if err := rt.Check(path); err != nil {
		return &Error{Code: CodeBadProgram, Message: err.Error()}
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("program %s: %w", spec.Code, err)
	}
	if info.Size() > maxProgram {
		return &Error{Code: CodeBadProgram, Message: fmt.Sprintf("the program has %d MiB: at most %d", info.Size()>>20, maxProgram>>20), Fix: "put large data as blobs"}
	}
	job := &protocol.Job{
		Job: spec.ID[:], Name: spec.Name, Detached: spec.Detached, MaxParallel: spec.MaxParallel,
		SubmittedUnixMs: time.Now().UnixMilli(),
		Program: &protocol.Program{
			Runtime: spec.Runtime, Code: &protocol.Blob{Id: spec.Code[:], Size: uint64(info.Size())},
			Args: spec.Args, ClockReal: spec.ClockReal,
		},
		Limits:  &protocol.Limits{TimeoutUs: uint64(spec.Timeout.Microseconds()), MemoryBytes: spec.Memory},
		Retries: spec.Retries, Priority: int32(spec.Priority), Placement: spec.Placement.message(), Spare: spec.Spare,
		Runs: spec.Runs,
	}
	job.Local = spec.Local
	if !spec.Group.IsZero() {
		job.Group = spec.Group[:]
	}
	if spec.HaltFailed > 0 {
		job.Halt = &protocol.Halt{Failed: spec.HaltFailed, Now: spec.HaltNow}
	}
	if !spec.RerunOf.IsZero() {
		job.RerunOf = spec.RerunOf[:]
	}
	var stepped error
	if err := n.room(); err != nil {
		return err
	}
	err = n.ask(func(s *tasks.Scheduler) {
		if st, ok := s.Job(spec.ID); ok {
			if !proto.Equal(st.Spec.Program, job.Program) {
				stepped = &Error{Code: CodeRefused, Message: fmt.Sprintf("there is a job %s with another program", spec.ID.Short()), Fix: "choose another id"}
			}
			return
		}
		if stepped = s.Step(n.loop.now(), tasks.Submit{Job: spec.ID, Spec: job}); stepped != nil {
			return
		}
		kept = true
		j := n.loop.job(spec.ID)
		j.pins.add(n.blobs, spec.Code)
		if !spec.Detached {
			j.abandon(&n.loop)
		}
	})
	return cmp.Or(err, jobError(stepped))
}

// check refuses what no job may ask for.
func (s *JobSpec) check() error {
	bad := func(format string, args ...any) error {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf(format, args...)}
	}
	p := &s.Placement
	switch {
	case s.Retries > MaxRetries:
		return bad("%d retries: at most %d", s.Retries, MaxRetries)
	case s.Priority < MinPriority || s.Priority > MaxPriority:
		return bad("priority %d: want %d to %d", s.Priority, MinPriority, MaxPriority)
	case p.LocalOnly && p.RemoteOnly:
		return bad("a job that may run only here and only elsewhere can run nowhere")
	case len(p.Not) > MaxNot:
		return bad("%d peers that may not run the job: at most %d", len(p.Not), MaxNot)
	case len(p.On) > protocol.MaxName || !utf8.ValidString(p.On):
		return bad("the expression of --on: want UTF-8 of at most %d bytes", protocol.MaxName)
	case s.HaltNow && s.HaltFailed == 0:
		return bad("halt now, after no failure")
	}
	if len(s.Runs) > MaxRuns {
		return bad("the tasks are too scattered a part of a longer list: %d runs, at most %d", len(s.Runs), MaxRuns)
	}
	if _, err := protocol.NewNumbers(s.Runs); err != nil {
		return bad("the tasks are a part of %v", err)
	}
	if _, err := tasks.ParseOn(p.On); err != nil {
		return bad("--on %s: %v", p.On, err)
	}
	for _, id := range p.Not {
		if _, err := peer.Decode(string(id)); err != nil {
			return bad("%.60q is no peer ID", string(id))
		}
	}
	if l := s.Local; l != nil {
		for _, t := range append([]string{l.Interpreter, l.Version, l.Dir}, l.Path...) {
			if len(t) > maxPath || !utf8.ValidString(t) {
				return bad("how it runs here: %.60q: want UTF-8 of at most %d bytes", t, maxPath)
			}
		}
		if len(l.Path) > maxPathEntries {
			return bad("how it runs here: %d places of modules, at most %d", len(l.Path), maxPathEntries)
		}
		if len(l.Version) > 16 || strings.Trim(l.Version, "0123456789.") != "" {
			return bad("how it runs here: version %.60q: want one like 3.12", l.Version)
		}
	}
	if protocol.Spare_name[int32(s.Spare)] == "" {
		return bad("spare %d: not known", s.Spare)
	}
	return nil
}

// message is what the scheduler gets; nil if nothing is asked for.
func (p *Placement) message() *protocol.Placement {
	if p.On == "" && len(p.Not) == 0 && !p.LocalOnly && !p.RemoteOnly {
		return nil
	}
	m := &protocol.Placement{On: p.On, LocalOnly: p.LocalOnly, RemoteOnly: p.RemoteOnly}
	for _, id := range p.Not {
		m.Not = append(m.Not, string(id))
	}
	return m
}

// minFree is the room on the disk below which nothing new is submitted: what is under way has to end. The ballast is the last of it.
const (
	minFree = 256 << 20
	ballast = 64 << 20
)

// room refuses submissions when the disk is nearly full.
func (n *Node) room() error {
	why := n.diskState()
	if why == "" {
		return nil
	}
	return &Error{Code: CodeUnavailable, Message: "no new tasks: " + why,
		Fix: "make room on the disk of " + n.cfg.DataDir + "; jobs under way go on, and results can be read"}
}

// roomLately is room for what comes often: the disk is not asked again within roomFor.
func (n *Node) roomLately() error {
	now := n.loop.now()
	if found := n.roomAt.Load(); found != 0 && now-found < int64(roomFor) && !n.journal.Stalled() {
		return nil
	}
	err := n.room()
	if err == nil {
		n.roomAt.Store(now)
	}
	return err
}

// diskState is what is wrong with the room on the disk, "" if nothing is.
func (n *Node) diskState() string {
	free, known := n.journal.Free()
	switch {
	case n.journal.Stalled():
		return "stalled: the disk is full"
	case known && uint64(free) < n.cfg.MinFree:
		return fmt.Sprintf("the disk has %d MiB left, of which the last %d are for work under way", free>>20, n.cfg.MinFree>>20)
	}
	return ""
}

// AddTasks implements clientAPI.
func (n *Node) AddTasks(ctx context.Context, job protocol.JobID, first uint32, ins []TaskInput) error {
	if err := n.roomLately(); err != nil {
		return err
	}
	var pins pins
	add, err := n.taskInputs(ctx, job, ins, &pins)
	if err != nil {
		pins.release(n.blobs)
		return err
	}
	return n.addInputs(job, first, add, pins)
}

// taskInputs are inputs as the scheduler has them, with their blobs here and pinned, and on the disk if the job is detached: the client of
// an attached one puts them again should the machine stop.
func (n *Node) taskInputs(ctx context.Context, job protocol.JobID, ins []TaskInput, pins *pins) ([]tasks.Input, error) {
	out := make([]tasks.Input, len(ins))
	sync := true
	if slices.ContainsFunc(ins, func(in TaskInput) bool { return len(in.Blobs) > 0 || len(in.Data) > protocol.MaxInline }) {
		err := n.ask(func(s *tasks.Scheduler) {
			st, ok := s.Job(job)
			sync = !ok || st.Spec.Detached
		})
		if err != nil {
			return nil, err
		}
	}
	put := n.blobs.PutLoose
	if sync {
		put = n.blobs.Put
	}
	known := map[protocol.BlobID]*protocol.Blob{}
	for i, in := range ins {
		if len(in.Blobs) > protocol.MaxTaskBlobs {
			return nil, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("task reads %d blobs: at most %d", len(in.Blobs), protocol.MaxTaskBlobs), Fix: "put several objects into one"}
		}
		if i > 0 && len(in.Blobs) > 0 && slices.Equal(in.Blobs, ins[i-1].Blobs) {
			out[i].Blobs = out[i-1].Blobs
		} else if len(in.Blobs) > 0 {
			out[i].Blobs = make([]*protocol.Blob, len(in.Blobs))
			for k, id := range in.Blobs {
				b := known[id]
				if b == nil {
					size, err := n.blobs.PinSize(id)
					if err != nil {
						return nil, noBlob(id.String())
					}
					pins.add(n.blobs, id)
					n.leases.renew(n.blobs, id)
					if sync {
						if err := n.blobs.Sync(id); err != nil {
							return nil, n.putError(err)
						}
					}
					b = &protocol.Blob{Id: bytes.Clone(id[:]), Size: uint64(size)}
					known[id] = b
				}
				out[i].Blobs[k] = b
			}
		}
		if len(in.Data) <= protocol.MaxInline {
			out[i].Data = in.Data
			continue
		}
		b, err := put(ctx, bytes.NewReader(in.Data))
		if err != nil {
			return nil, n.putError(err)
		}
		pins.add(n.blobs, protocol.BlobID(b.Id))
		out[i].Blob = b
	}
	return out, nil
}

// pins are blobs that are pinned once each for the same purpose.
type pins map[protocol.BlobID]struct{}

// add takes over a pin; one more of the same blob is given back.
func (p *pins) add(s *blob.Store, id protocol.BlobID) {
	if *p == nil {
		*p = pins{}
	}
	if _, ok := (*p)[id]; ok {
		s.Unpin(id)
	}
	(*p)[id] = struct{}{}
}

func (p *pins) release(s *blob.Store) {
	for id := range *p {
		s.Unpin(id)
	}
	*p = nil
}

// addInputs adds tasks whose blobs are pinned: from now on by their job.
func (n *Node) addInputs(job protocol.JobID, first uint32, ins []tasks.Input, pins pins) error {
	var stepped error
	err := n.ask(func(s *tasks.Scheduler) {
		j := n.loop.job(job)
		for id := range pins {
			j.pins.add(n.blobs, id)
		}
		if spec, _ := s.Spec(job); spec != nil && !readsBlobs(spec.Program.GetRuntime()) && slices.ContainsFunc(ins, func(in tasks.Input) bool { return len(in.Blobs) > 0 }) {
			stepped = &Error{Code: CodeBadRequest, Message: "a task of runtime " + spec.Program.GetRuntime() + " cannot read blobs", Fix: "give it the bytes as its input, up to 16 MiB"}
		} else {
			stepped = s.Step(n.loop.now(), tasks.Submit{Job: job, First: first, Inputs: ins})
		}
		if j.gone != nil {
			j.abandon(&n.loop) // its client lives
		}
		n.loop.tidy(job)
	})
	if err != nil {
		pins.release(n.blobs)
	}
	return cmp.Or(err, jobError(stepped))
}

// readsBlobs says whether programs of a runtime can read files that are given to them.
func readsBlobs(runtime string) bool { return runtime != "wasm" }

// CloseJob implements clientAPI.
func (n *Node) CloseJob(ctx context.Context, job protocol.JobID, count uint32) error {
	accepted := make(chan struct{})
	var stepped error
	err := n.ask(func(s *tasks.Scheduler) {
		if stepped = s.Step(n.loop.now(), tasks.Submit{Job: job, First: count, Close: true, Count: count}); stepped == nil {
			j := n.loop.job(job)
			j.accepted = append(j.accepted, accepted)
		}
	})
	if err = cmp.Or(err, jobError(stepped)); err != nil {
		return err
	}
	select {
	case <-accepted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		return errStopping
	}
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

// nameOf is the label of a node, as far as this one has met it.
func (n *Node) nameOf(id protocol.NodeID) string {
	if id == n.self {
		return n.cfg.Name
	}
	if label := n.labelOf(string(id)); label != "" {
		return label
	}
	if name, ok := n.names.Load(id); ok && name != "" {
		return name.(string)
	}
	if p, err := peer.Decode(string(id)); err == nil {
		if c, ok := n.members.Certificate(p); ok {
			return c.Name
		}
	}
	return id.Short()
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

// SetGroup implements clientAPI.
func (n *Node) SetGroup(ctx context.Context, group protocol.JobID, limit int) error {
	if group.IsZero() {
		return &Error{Code: CodeBadRequest, Message: "the group has no id"}
	}
	return n.step(tasks.SetGroup{Group: group, Limit: limit})
}

// Cancel implements clientAPI.
func (n *Node) Cancel(ctx context.Context, job protocol.JobID, index *uint32) error {
	return jobError(n.step(tasks.Cancel{Job: job, Task: index, Reason: "cancelled by its owner"}))
}

// Status implements clientAPI.
func (n *Node) Status(ctx context.Context) (Status, error) {
	st := Status{
		ID: string(n.self), Name: n.cfg.Name, Version: n.cfg.Version, Mesh: n.members.Mesh().String(), Addrs: n.Addrs(),
		Started: n.started, UI: "off", DataDir: n.cfg.DataDir, PID: os.Getpid(),
	}
	st.Disk, st.Network, st.Membership = n.diskState(), n.networkTrouble(), strings.Join(n.members.Trouble(), "; ")
	st.BlobsSent, st.BlobsReceived = n.meter.sent.Load(), n.meter.received.Load()
	err := n.ask(func(s *tasks.Scheduler) {
		for _, p := range s.Peers() {
			switch {
			case p.Self:
				st.Slots, st.Running, st.Queued, st.Results = p.Slots, p.Running, p.Queued, p.Unanswered
				if p.Paused != "" {
					st.Paused = &p.Paused
				}
			case p.Up:
				st.Peers++
			}
		}
	})
	return st, err
}

// Peers implements clientAPI.
func (n *Node) Peers(ctx context.Context) ([]Peer, error) {
	var all []tasks.PeerStatus
	if err := n.ask(func(s *tasks.Scheduler) { all = s.Peers() }); err != nil {
		return nil, err
	}
	byID := map[string]*Peer{}
	own := n.members.Own()
	at := func(id string) *Peer {
		if byID[id] == nil {
			byID[id] = &Peer{ID: id, Name: n.nameOf(protocol.NodeID(id)), State: "gone", Path: "direct", Runtimes: []string{}, Sandbox: "wasm", Labels: []string{}, Addrs: []string{}}
			if p, err := peer.Decode(id); err == nil {
				byID[id].MayUseHere, byID[id].MayUseThere = n.members.MayUseHere(p), n.members.MayUseThere(p)
				if c, ok := n.members.Certificate(p); ok {
					if byID[id].Owner = shortOwner(c.Owner); c.Owner == own.Owner {
						byID[id].Owner = "mine"
					}
				}
			}
		}
		return byID[id]
	}
	for _, k := range n.finder.Known() {
		id := k.Peer.String()
		if k.Peer == "" { // an address that was given and where no member was found yet
			id = k.Name
		}
		p := at(id)
		p.Name, p.Reason = cmp.Or(n.labelOf(id), k.Name, p.Name), k.Reason
		switch {
		case k.Version != nil:
			p.fix = k.Version.Fix()
		case k.Peer == "":
			p.fix = fixGiven
		default:
			p.fix = k.Fix
		}
		if wait := time.Until(k.NextTry); p.Reason != "" && wait > 0 {
			p.Reason += fmt.Sprintf("; next try in %s", inWords(wait))
		}
		p.Via = k.Via
		if !k.NextTry.IsZero() {
			p.NextTry = &k.NextTry
		}
		if !k.LastSeen.IsZero() {
			p.LastSeen = &k.LastSeen
		}
		for _, a := range k.Addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
	}
	for _, st := range all {
		if !st.Self && !st.Up {
			if p := byID[string(st.ID)]; p != nil && st.Name != "" {
				p.Name, p.Version, p.Slots = cmp.Or(n.labelOf(p.ID), st.Name), st.Version, st.Slots
				if st.Asleep {
					p.State, p.Reason = "asleep", "it said that it goes to sleep"
				}
			}
			continue // known only if discovery knows it: it may have left the mesh
		}
		p := at(string(st.ID))
		p.Slots, p.Running, p.Queued = st.Slots, st.Running, st.Queued
		p.Version, p.Reason = st.Version, st.Paused
		p.Runtimes = append(p.Runtimes, st.Runtimes...)
		for _, r := range st.Runtimes {
			if kind := strings.TrimRight(r, "0123456789."); kind != "wasm" {
				p.Sandbox += "; " + kind + ": none"
			}
		}
		p.OS, p.Arch, p.CPUs, p.Memory = st.OS, st.Arch, st.CPUs, st.Memory
		p.Labels = append(p.Labels, st.Labels...)
		switch {
		case st.Self:
			p.State, p.Version, p.Addrs, p.Owner = "self", n.cfg.Version, n.Addrs(), "mine"
			p.Protocol = n.members.Speaks()[0]
			p.MayUseHere, p.MayUseThere = nil, nil
			if trouble := n.members.Trouble(); len(trouble) > 0 {
				p.Reason = strings.Join(append(trouble, p.Reason), "; ")
				p.Reason = strings.TrimSuffix(p.Reason, "; ")
			}
		case st.Suspect:
			p.State, p.Name = "suspect", cmp.Or(st.Name, p.Name)
			p.Reason = "no sign of life"
		default:
			p.State, p.Name = "connected", cmp.Or(st.Name, p.Name)
		}
		if id, err := peer.Decode(string(st.ID)); err == nil && !st.Self {
			if direct, relay := n.finder.Path(id); !direct && relay != "" {
				p.Path, p.Relay = "relay", relay.String()
			}
		}
		if s := n.sessions.get(st.ID); s != nil {
			p.RTT = float64(s.pings.roundTrip()) / float64(time.Millisecond)
			age := s.heardAge()
			p.Heard = float64(age) / float64(time.Millisecond)
			if p.State == "suspect" {
				p.Reason += fmt.Sprintf(" for %.1f s", age.Seconds())
			}
			p.Protocol = s.version
			// Of one that dialled us, the connection's address is not where it listens: that is known from what it says.
			if c := s.stream.Conn(); p.Path == "direct" && (c.Stat().Direction == network.DirOutbound || len(p.Addrs) == 0) {
				p.Addrs = []string{c.RemoteMultiaddr().String()}
			}
		}
	}
	out := make([]Peer, 0, len(byID))
	for _, p := range byID {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Peer) int {
		return cmp.Or(-compareBool(a.State == "self", b.State == "self"), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// inWords is a wait for people: "4 s", "3 min".
func inWords(d time.Duration) string {
	if d > 2*time.Minute {
		return fmt.Sprintf("%d min", d.Round(time.Minute)/time.Minute)
	}
	return fmt.Sprintf("%d s", max(1, d.Round(time.Second)/time.Second))
}

func shortOwner(o string) string { return o[:min(8, len(o))] }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Invite implements clientAPI.
func (n *Node) Invite(ctx context.Context, o InviteOptions) (string, error) {
	var addrs []ma.Multiaddr
	addrs = append(addrs, n.host.Addrs()...)
	t, err := n.members.Invite(members.InviteOptions{
		Mine: o.Mine, Guest: o.Guest, Expires: o.Expires, Uses: o.Uses, Runtimes: o.Runtimes, Addrs: addrs,
	})
	return t, inviteError(err)
}

// inviteError is what a person is told.
func inviteError(err error) error {
	switch {
	case errors.Is(err, members.ErrRevoked):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "to be a member again: meshnode leave, then meshnode join with a new ticket"}
	case errors.Is(err, members.ErrNotAdmin):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "invite from the machine that made the mesh, or from one that joined with a ticket of meshnode invite --mine"}
	case err != nil:
		return &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	return nil
}

// connectTime is how long Connect tries: a program waits for it.
const connectTime = 3 * time.Second

// Connect implements clientAPI.
func (n *Node) Connect(ctx context.Context, addr string) (Connected, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	p, err := peer.Decode(addr)
	if err == nil {
		err = n.finder.Reach(ctx, p)
	} else {
		g, perr := discovery.ParseGiven(addr)
		if perr != nil {
			return Connected{}, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("no member is called %.80q, and it is no address", addr), Fix: "meshnode peers lists the members; an address is HOST:PORT or a multiaddr"}
		}
		p, err = n.finder.Connect(ctx, g)
	}
	if err == nil {
		err = n.awaitSession(ctx, p)
	}
	var cannot *discovery.ConnectError
	switch {
	case err == nil:
	case errors.Is(err, discovery.ErrSelf):
		return Connected{}, &Error{Code: CodeRefused, Message: addr + " is this node itself", Fix: "name another node"}
	case errors.Is(err, discovery.ErrNotMember):
		return Connected{}, &Error{Code: CodeNoPeer, Message: addr + " is no member of this mesh", Fix: "invite it: meshnode invite"}
	case errors.As(err, &cannot) && cannot.Refused:
		return Connected{}, &Error{Code: CodeRefused, Message: fmt.Sprintf("%s: %s", addr, cannot.Reason), Fix: "it must be a member of this mesh: meshnode invite here, meshnode join there"}
	default:
		return Connected{}, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("%s: %v", addr, err), Fix: "see whether a node runs there, and listens on that port: meshnode status there says so"}
	}
	return n.connected(p), nil
}

// awaitSession waits until p can be given work.
func (n *Node) awaitSession(ctx context.Context, p peer.ID) error {
	for n.sessions.get(protocol.NodeID(p.String())) == nil {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("it is connected, and says nothing")
		}
	}
	return nil
}

// connected is what Connect returns for a peer that is connected.
func (n *Node) connected(p peer.ID) Connected {
	c := Connected{Peer: p.String(), Name: n.nameOf(protocol.NodeID(p.String()))}
	if cert, ok := n.members.Certificate(p); ok {
		c.Name = cmp.Or(cert.Name, c.Name)
	}
	return c
}

// Join implements clientAPI.
func (n *Node) Join(ctx context.Context, ticket string) (string, error) {
	if err := CheckTicket(ticket); err != nil {
		return "", err
	}
	if err := n.members.Join(ctx, strings.TrimSpace(ticket), members.JoinOptions{Find: discovery.FindOnLAN}); err != nil {
		return "", &Error{Code: CodeRefused, Message: err.Error()}
	}
	return n.members.Mesh().String(), nil
}

// SetSlots implements clientAPI.
func (n *Node) SetSlots(ctx context.Context, k int) error {
	if k < 0 {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("%d slots", k), Fix: "want 0 or more"}
	}
	return n.step(tasks.SetSlots{Slots: k})
}

// Pause implements clientAPI.
func (n *Node) Pause(ctx context.Context, d time.Duration) error {
	reason := "paused by its owner"
	if d > 0 {
		reason += " until " + time.Now().Add(d).Format("15:04:05")
	}
	return n.pauseFor(d, reason)
}

// Drain implements clientAPI.
func (n *Node) Drain(ctx context.Context) error { return n.pauseFor(0, "drained by its owner") }

// pauseFor pauses for d, or until Resume if d is 0.
func (n *Node) pauseFor(d time.Duration, reason string) error {
	n.pause.mu.Lock()
	defer n.pause.mu.Unlock()
	if n.pause.timer != nil {
		n.pause.timer.Stop()
		n.pause.timer = nil
	}
	if d > 0 {
		n.pause.timer = time.AfterFunc(d, func() { n.step(tasks.SetPaused{}) })
	}
	return n.step(tasks.SetPaused{Reason: reason})
}

// Resume implements clientAPI.
func (n *Node) Resume(ctx context.Context) error {
	n.pause.mu.Lock()
	defer n.pause.mu.Unlock()
	if n.pause.timer != nil {
		n.pause.timer.Stop()
		n.pause.timer = nil
	}
	return n.step(tasks.SetPaused{})
}

// pauseEnd is the end of a pause for a while.
type pauseEnd struct {
	mu    sync.Mutex
	timer *time.Timer
}
