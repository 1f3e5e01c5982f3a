package tasks

import (
	"cmp"
	"fmt"
	"slices"

	"meshnode/protocol"
)

// job is a job of this node as its origin: the only authority on it.
type job struct {
	id     protocol.JobID
	spec   *protocol.Job
	on     *On    // of spec.Placement
	group  *group // nil: it is in none
	number uint64 // counts jobs as they were opened
	active bool   // it is in Scheduler.active
	closed bool
	count  uint32 // tasks it will have, if closed
	tasks  taskList
	seqs   []uint32 // of the tasks, once the job has ended: places of their results, or unended
	// numbers are the places of the tasks in the list of which they are a part.
	numbers protocol.Numbers

	// Pending tasks are those not yet reached by next, those in returned, and those in inputs.absent. All may name tasks that
	// are not pending any more (granted on adoption, cancelled): takers skip these.
	next     uint32
	returned []uint32
	inputs   inputs
	pending  int // tasks in state pending
	ready    int // of these, those whose inputs are in memory
	leased   int // tasks with a live lease

	// live has the first live lease of each leased task, at the task's place; nil: the place is free, and in places. There is
	// more than one lease while a late copy still counts: lease.also.
	live   []*lease
	places []uint32

	ended     uint32 // terminal tasks: the next Done.Seq
	failed    uint32 // of these, not OK
	bad       uint32 // of these, not cancelled either
	cancelled string // reason, once the job was cancelled or halted
	halting   string // reason, once no more of it is granted and what runs may end
	state     JobState
	reason    string

	// Workers that may hold attempts of an earlier life of this node. Until each has answered, or limboUntil has
	// come, nothing of the job is granted: it may be running or done there.
	grantedTo  map[protocol.NodeID]bool
	awaited    map[protocol.NodeID]bool
	limboUntil int64

	fetching map[protocol.Attempt]*protocol.Outcome // results whose bytes are on their way
	charged  map[protocol.Attempt]bool              // that failed, or whose worker process died, and did not end the task: each counts once

	// See blame.go.
	trouble   map[uint32]*trouble
	elsewhere map[protocol.NodeID][]uint32 // pending tasks that wait for another node than this, where they failed
	suspects  []uint32                     // pending tasks that are to run alone; see poison.go
	fails     uint32                       // failed attempts
	failing   int                          // workers with doubtAfter of them in a row

	blobBytes uint64                   // of what each task reads alone, all tasks together
	readers   map[protocol.BlobID]bool // blobs that tasks read besides their input; true: more than one task does
	claim     claim                    // slot time of its attempts: real of those that ended, estimated of live ones
	run       mean                     // of successes, over all workers
	byWorker  map[protocol.NodeID]*share
	weights   int64  // of all peers that may run it, at
	weighedAt uint64 // that Ready; see fairShare
	openedAt  int64
	endedAt   int64

	// For retain.go.
	endedAwake int64 // the awake time of its end, if aged
	aged       bool
	watched    int               // clients that read its results
	bytes      int64             // of its inputs and results
	blobs      []protocol.BlobID // of its results, pinned until it is forgotten

	attempts, stolen, reissued, spares uint32
}

// share is what one worker did for a job.
type share struct {
	tasks  uint32
	busyUS uint64
	run    mean
	live   int                      // attempts that it has
	done   uint32                   // tasks that ended well
	fails  uint32                   // attempts that failed
	streak uint32                   // of these, since the last that did not
	wrong  bool                     // what it failed in doubt went well elsewhere
	blobs  map[protocol.BlobID]bool // that tasks share, and that it has by our grants
}

// task is one task of a job. Its place in job.tasks is its index. It is small, for there may be ten million; what only a leased
// one needs is in its leases, its input in job.inputs.
//
// pending: accepted, or its last attempt was lost. → leased by a grant, terminal by a cancel or a late result.
// leased: one live attempt or more. → pending when the last one is lost, terminal by the first valid result.
// terminal: for ever. A crash of the origin leaves what is recorded: terminal tasks, and the others pending.
type task struct {
	n      uint32 // last attempt number used in this epoch
	seq    uint32 // of its Done, if terminal; its place in job.live, if leased
	grants uint16 // attempts granted so far, in this life; stops at its maximum
	moves  uint8  // times it was recalled
	state  taskState
}

type taskState uint8

const (
	pending taskState = iota
	leased
	terminal
)

func (s *Scheduler) submit(ev Submit) error {
	if s.stopping != "" {
		return ErrStopped
	}
	j := s.jobs[ev.Job]
	if _, forgotten := s.kept.forgotten[ev.Job]; forgotten {
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrForgotten)
	}
	if j == nil && ev.Spec == nil {
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrNoJob)
	}
	has := uint32(0)
	if j != nil {
		has = j.tasks.n
	}
	if j != nil && j.cancelled != "" { // its client has not heard yet
		s.notice(Notice{Kind: Accepted, Job: j.id, Count: has, Closed: ev.Close})
		return nil
	}
	end := uint64(ev.First) + uint64(len(ev.Inputs))
	fresh := end > uint64(has)
	switch {
	case ev.First > has:
		return fmt.Errorf("job %s has %d tasks, and task %d: %w", ev.Job.Short(), has, ev.First, ErrGap)
	case end > protocol.MaxTasks || ev.Close && ev.Count > protocol.MaxTasks:
		return fmt.Errorf("job %s: at most %d tasks: %w", ev.Job.Short(), protocol.MaxTasks, ErrTooMany)
	case j != nil && (j.closed || j.state >= JobDone) && fresh:
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrClosed)
	case ev.Close && uint64(ev.Count) != max(end, uint64(has)):
		return fmt.Errorf("job %s: closed at %d tasks with %d there: %w", ev.Job.Short(), ev.Count, max(end, uint64(has)), ErrGap)
	}
	if j == nil {
		on, err := ParseOn(ev.Spec.Placement.GetOn())
		if err != nil {
			return fmt.Errorf("job %s: --on %s: %w: %w", ev.Job.Short(), ev.Spec.Placement.GetOn(), ErrPlacement, err)
		}
		j = s.openJob(ev.Job, ev.Spec)
		j.on = on
		s.record(JobRecord{ev.Spec})
	}
	if j.state >= JobDone { // a repeated submission of what has ended
		s.notice(Notice{Kind: Accepted, Job: j.id, Count: j.tasks.n, Closed: ev.Close, Durable: j.spec.Detached})
		return nil
	}
	if fresh {
		inputs := ev.Inputs[has-ev.First:]
		s.addTasks(j, inputs)
		s.record(TasksRecord{Job: j.id, First: has, Inputs: inputs})
	}
	if ev.Close && !j.closed {
		j.closed, j.count = true, ev.Count
		s.record(ClosedRecord{j.id, ev.Count})
	}
	if j.spec.Detached {
		s.out.Sync = true
	}
	s.notice(Notice{Kind: Accepted, Job: j.id, Count: j.tasks.n, Closed: ev.Close, Durable: j.spec.Detached})
	s.checkEnd(j)
	return nil
}

func (s *Scheduler) openJob(id protocol.JobID, spec *protocol.Job) *job {
	j := &job{
		id: id, spec: spec, state: JobWaiting, openedAt: s.now,
		grantedTo: map[protocol.NodeID]bool{},
		fetching:  map[protocol.Attempt]*protocol.Outcome{}, charged: map[protocol.Attempt]bool{},
		trouble: map[uint32]*trouble{}, elsewhere: map[protocol.NodeID][]uint32{}, byWorker: map[protocol.NodeID]*share{},
	}
	if j.group = s.groupOf(spec); j.group != nil {
		j.group.jobs++
	}
	j.numbers, _ = protocol.NewNumbers(spec.Runs) // what is no list was refused, or is none
	s.jobs[id] = j
	s.opened++
	j.number = s.opened
	s.jobOrder = append(s.jobOrder, j)
	return j
}

// isActive says that there may be something to do for j.
func (j *job) isActive() bool {
	return j.pending+j.leased > 0 || len(j.fetching) > 0 || j.halting != ""
}

// activate makes j one for which there is something to do. It is not any more when a Ready finds nothing.
func (s *Scheduler) activate(j *job) {
	if j.active || j.state >= JobDone {
		return
	}
	j.active = true
	i, _ := slices.BinarySearchFunc(s.active, j, func(a, b *job) int { return cmp.Compare(a.number, b.number) })
	s.active = slices.Insert(s.active, i, j)
}

func (s *Scheduler) deactivate(j *job) {
	if j.active {
		j.active = false
		s.active = slices.DeleteFunc(s.active, func(k *job) bool { return k == j })
	}
}

// info is what workers learn of the job.
func (j *job) info(epoch uint64) *protocol.JobInfo {
	return &protocol.JobInfo{
		Job: j.id[:], Epoch: epoch, Name: j.spec.Name, Program: j.spec.Program, Limits: j.spec.Limits,
		RunUs: j.run.us(), Tasks: uint64(j.tasks.n), Priority: j.spec.Priority,
	}
}

func (s *Scheduler) cancel(ev Cancel) error {
	j := s.jobs[ev.Job]
	if j == nil {
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrNoJob)
	}
	if j.state >= JobDone {
		return nil
	}
	if ev.Task != nil {
		if *ev.Task >= j.tasks.n {
			return fmt.Errorf("task %d of job %s: %w: it has %d", *ev.Task, ev.Job.Short(), ErrNoTask, j.tasks.n)
		}
		if j.tasks.at(*ev.Task).state != terminal {
			s.finish(j, *ev.Task, &protocol.Outcome{
				Job: j.id[:], Index: *ev.Task, Status: protocol.Status_CANCELLED, ExitCode: 130, Error: ev.Reason,
			}, "")
		}
		return nil
	}
	s.record(CancelRecord{Job: j.id, Reason: ev.Reason})
	s.out.Sync = true
	s.cancelJob(j, JobCancelled, ev.Reason)
	return nil
}

// cancelJob ends a job whose cancellation is recorded. Its workers hear of it by endJob.
func (s *Scheduler) cancelJob(j *job, state JobState, reason string) {
	j.cancelled = cmp.Or(reason, "cancelled")
	for _, l := range slices.SortedFunc(j.leases(), func(a, b *lease) int { return a.attempt.Compare(b.attempt) }) {
		s.dropLease(l)
	}
	j.pending, j.leased = 0, 0
	clear(j.fetching)
	s.endJob(j, state, j.cancelled)
}

// checkEnd ends a job whose tasks are all terminal.
func (s *Scheduler) checkEnd(j *job) {
	if j.state >= JobDone || !j.closed || j.ended < j.count {
		return
	}
	if j.failed > 0 {
		s.endJob(j, JobFailed, fmt.Sprintf("%d of %d tasks failed", j.failed, j.count))
	} else {
		s.endJob(j, JobDone, "")
	}
}

// endJob tells watchers and workers that a job is over, and frees what only a running one needs.
func (s *Scheduler) endJob(j *job, state JobState, reason string) {
	j.state, j.reason, j.endedAt = state, reason, s.now
	j.limboUntil, j.awaited, j.charged = 0, nil, nil
	j.seqs, j.tasks.pieces = j.tasks.seqs(), nil
	j.freeInputs()
	j.live, j.places, j.readers = nil, nil, nil
	for _, sh := range j.byWorker {
		sh.blobs = nil
	}
	j.trouble, j.elsewhere, j.suspects, j.failing = nil, nil, nil, 0
	if k := slices.Index(s.jobOrder, j); k >= 0 {
		s.jobOrder = slices.Delete(s.jobOrder, k, k+1)
	}
	s.deactivate(j)
	for _, id := range s.order {
		p := s.peers[id]
		if _, told := p.informed[j.id]; told {
			delete(p.informed, j.id)
			s.send(p, &protocol.Cancel{Epoch: s.epoch, Job: j.id[:]})
		}
		delete(p.cannot, j.id)
		delete(p.fits, j.id)
	}
	s.leave(j.group)
	s.retire(j)
	s.notice(Notice{Kind: JobEnded, Job: j.id, State: state, Reason: reason})
}

func (s *Scheduler) forget(ev Forget) error {
	j := s.jobs[ev.Job]
	if j == nil {
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrNoJob)
	}
	if j.state < JobDone {
		return fmt.Errorf("job %s: %w", ev.Job.Short(), ErrRunning)
	}
	s.forgetJob(j)
	return nil
}

// Restore takes one record of an earlier life, before the first Step. Records of one job must come in the order in
// which they were written, but for what journal.Load says.
func (s *Scheduler) Restore(now int64, r Record) error {
	s.now = now
	find := func(id protocol.JobID) (*job, error) {
		if j := s.jobs[id]; j != nil {
			return j, nil
		}
		return nil, fmt.Errorf("restore %T: job %s: %w", r, id, ErrNoJob)
	}
	switch r := r.(type) {
	case EpochRecord:
		if r.Epoch > s.epoch {
			return fmt.Errorf("restore: epoch %d is on disk, and this life has %d", r.Epoch, s.epoch)
		}
	case JobRecord:
		id, err := protocol.JobIDFrom(r.Spec.Job)
		if err != nil {
			return fmt.Errorf("restore job: %w", err)
		}
		if s.jobs[id] == nil {
			j, text := s.openJob(id, r.Spec), r.Spec.Placement.GetOn()
			if j.on, err = ParseOn(text); err != nil { // of a later version
				j.on = &On{text: text, bad: err}
			}
		}
	case TasksRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		if r.First != j.tasks.n {
			return fmt.Errorf("restore job %s: tasks from %d on, and %d are there: %w", r.Job, r.First, j.tasks.n, ErrGap)
		}
		s.addTasks(j, r.Inputs)
	case ClosedRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		j.closed, j.count = true, r.Count
	case GrantedRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		j.grantedTo[r.Worker] = true
	case DoneRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		o := r.Done.Outcome
		if o.Index >= j.tasks.n || r.Done.Seq != j.ended || j.tasks.at(o.Index).state == terminal {
			return fmt.Errorf("restore job %s: result %d of task %d does not fit", r.Job, r.Done.Seq, o.Index)
		}
		s.book(j, o, r.Done.Worker)
		if w := r.Done.Worker; w != "" && o.Status != protocol.Status_OK {
			j.fails++
			j.share(w).fails++
		}
	case CancelRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		j.cancelled = cmp.Or(r.Reason, "cancelled")
		if j.halting = ""; r.Halted {
			j.halting = j.cancelled
		}
	case TroubleRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		j.restoreTrouble(r)
	case EndedRecord:
		j, err := find(r.Job)
		if err != nil {
			return err
		}
		j.endedAwake, j.aged = r.At, true
	case ForgetRecord:
		if j := s.jobs[r.Job]; j != nil {
			s.leave(j.group)
			s.deactivate(j)
		}
		delete(s.jobs, r.Job)
		s.jobOrder = slices.DeleteFunc(s.jobOrder, func(j *job) bool { return j.id == r.Job })
		s.refuseID(r.Job, r.Until)
	case ReusableRecord:
		delete(s.kept.forgotten, r.Job)
		s.kept.ids = slices.DeleteFunc(s.kept.ids, func(id protocol.JobID) bool { return id == r.Job })
	case AwakeRecord:
		s.kept.awoke, s.kept.noted = r.Awake, r.Awake
	case AwayRecord:
		p := s.peer(r.Origin)
		p.away, p.awaySince = r.Since >= 0, r.Since
	case HeldRecord:
		p := s.peer(r.Origin)
		p.keep(&held{attempt: r.Outcome.AttemptOf(), mac: r.Outcome.Mac, from: p, outcome: r.Outcome})
	case AnsweredRecord:
		if p := s.peers[r.Origin]; p != nil && p.held[r.Attempt] != nil {
			p.drop(p.held[r.Attempt])
		}
	default:
		return fmt.Errorf("restore: unknown record %T", r)
	}
	return nil
}

// limbo is how long the tasks of a job wait, after a start, for workers that may hold them.
const limbo = 10 * second

// Restored says that the last record was restored.
func (s *Scheduler) Restored(now int64) {
	s.now, s.stepped = now, true
	s.kept.began = now
	for _, j := range s.sortedJobs() {
		if j.state >= JobDone {
			continue
		}
		if j.cancelled != "" {
			j.pending = 0
			state := JobCancelled
			if j.halting != "" {
				state = JobFailed
			}
			s.endJob(j, state, j.cancelled)
			continue
		}
		s.checkEnd(j)
		s.halt(j)
		if j.state < JobDone && len(j.grantedTo) > 0 {
			j.awaited, j.limboUntil = map[protocol.NodeID]bool{}, now+limbo
			s.limboEnds = now + limbo
			for w := range j.grantedTo {
				j.awaited[w] = true
			}
		}
	}
	for _, g := range s.groups {
		g.unknown, s.groupsFrom = true, now+limbo
	}
	for _, id := range s.order {
		p := s.peers[id]
		if len(p.held) == 0 {
			s.present(p) // it has answered all before the crash
		}
		s.wentAway(p, s.awake())
	}
	s.out.Messages, s.loop = nil, nil // nobody is there yet
}

// answeredWithout notes that a worker has said what it holds: nothing of it is unknown any more.
func (s *Scheduler) answeredWithout(w protocol.NodeID) {
	for _, j := range s.jobOrder {
		delete(j.awaited, w)
		if j.limboUntil != 0 && len(j.awaited) == 0 {
			j.limboUntil, j.awaited = 0, nil
		}
	}
}

func (s *Scheduler) limboTick() {
	if s.groupsFrom != 0 && s.now >= s.groupsFrom {
		s.forgetUnknown()
	}
	if s.limboEnds == 0 || s.now < s.limboEnds {
		return
	}
	s.limboEnds = 0
	for _, j := range s.jobOrder {
		j.limboUntil, j.awaited = 0, nil
	}
}
