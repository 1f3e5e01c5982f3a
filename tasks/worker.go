package tasks

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"meshnode/protocol"
)

// lessor is a peer in its role as an origin whose tasks this node runs. This node is one for itself.
type lessor struct {
	epoch      uint64 // the highest seen of it, and
	epochOf    uint64 // the incarnation of the process that had it
	held       map[protocol.Attempt]*held
	jobs       map[protocol.JobID]*heldJob
	jobTurn    []*heldJob // those with queued tasks, in turn
	grantsRead uint64     // number of its last Grant on this stream

	queuedHere, runningHere int
	here                    *load // of all origins together
	unansweredBytes         int64 // of outcomes, in memory,
	unansweredBlobs         int64 // and in their blobs, on disk
	inputBytes              int64 // of queued and running attempts, in memory
	needs                   needs // blobs that these read

	// Asking; see steal.go.
	pending   uint64                 // tasks it has to grant, by its last Load or Grant
	ask       *protocol.StealRequest // to be sent with this Ready
	asking    uint64                 // id of the request under way, 0: none
	askedAt   int64
	wanted    int // of that request
	asks      uint64
	askFrom   int64 // not before
	askPause  int64
	lastGrant int
	waited    mean // from request to grant
	run       mean // of its tasks here

	claim claim // of this node's slots; see share.go
	turns turns // of its jobs

	results   []*held // ended, to be sent
	away      bool    // it is away while there are outcomes of it here,
	awaySince int64   // since that awake time
	flushAt   int64
}

// heldJob is what a worker knows of a job.
type heldJob struct {
	id    protocol.JobID
	info  *protocol.JobInfo
	state prepState
	why   string // if invalid or unable
	queue []*held
	waits []*held // queued, but for blobs that are not here yet
	claim claim   // of what its origin has of this node's slots
	run   mean
	refs  int    // held attempts
	group *group // of an own job; nil: it is in none
	// announcedOn is the stream of its last JobInfo. On a later one no Cancel will come for it.
	announcedOn uint64
}

type prepState int8

const (
	preparing prepState = iota + 1
	prepared
	invalid // no node can run it: its tasks fail
	unable  // this node cannot: they go back
)

// held is an attempt at its worker.
//
// queued: granted (or put back by its slot); first in heldJob.waits, until what it reads is here. → running by Start, gone by a revoke, recall, or the loss of its origin.
// running: in a slot. → unanswered with its outcome, queued if the slot returns it, gone by a revoke (the slot then stops it).
// unanswered: its outcome is kept, on disk, until the origin answers. A crash of the worker keeps only these.
type held struct {
	attempt protocol.Attempt
	mac     []byte
	input   Input
	number  uint32 // as Item has it
	from    *peer
	job     *heldJob
	at      int64 // when it came
	started int64
	running bool
	returns int  // times that its slot could not run it
	needs   bool // it counts as one that reads its blobs, of which
	missing int  // so many are not here
	spare   bool // a second copy: it gives way to any first one
	alone   bool // nothing else may run here meanwhile
	outcome *protocol.Outcome
}

// slot runs items of one job at a time, one after the other. It is busy until it has said Idle and has nothing more.
type slot struct {
	busy  bool
	items []*held  // in the order in which it runs them
	from  *peer    // of its items
	job   *heldJob // of its items
	since int64    // its time is charged up to here
	some  bool     // an outcome came since the last Start
}

// Bounds of the worker's side.
const (
	// batchTime of estimated work goes into one Start, so that frames to the worker process do not cost more
	// than the tasks in them; a task longer than singleFrom goes alone, as its neighbours would wait for it.
	batchTime  = 2 * millisecond
	singleFrom = millisecond
	maxBatch   = 256
	// aheadUpTo is the longest task of which a slot is handed the next one while one runs: the half millisecond between an
	// answer and the next Start then costs nothing. It cannot be recalled, but it waits no longer than this.
	aheadUpTo = 32 * millisecond
	// stuckAfter its Start a slot's first task is of another kind than those of its job before it, and may run for minutes:
	// nothing more is put behind it.
	stuckAfter = 2 * aheadUpTo
	// maxHeld attempts of one origin, queued and running.
	maxHeld = 8192
	// maxUnanswered bytes of outcomes of one origin are kept here; at that it gets no more work.
	maxUnanswered = 64 << 20
	// maxUnansweredBlobs is the same for their blobs, a part of the store's quota.
	maxUnansweredBlobs = 1 << 30
	// maxInputs bytes of one origin's queued inputs: 8192 of the largest would be half a gigabyte.
	maxInputs = 64 << 20
	// maxJobs of one origin are known here at once, each of up to protocol.MaxControl bytes and with a program.
	maxJobs = 1024
	// maxReturns of an attempt by slots that could not run it, then its origin has it back: somebody else may be able to.
	maxReturns = 3
	// flushFirst and flushMost bound how long a result waits for others while its origin has queued work here.
	flushFirst, flushMost = 500 * microsecond, 20 * millisecond
	// maxResults outcomes, or maxResultBytes of them, go into one Result.
	maxResults     = 2048
	maxResultBytes = protocol.MaxBatch/2 - 3*protocol.MaxInline
)

func (p *peer) seenEpoch(e uint64) {
	if e >= p.epoch {
		p.epoch, p.epochOf = e, p.incarnation
	}
}

// stale says that a message belongs to an earlier life of its sender.
func (p *peer) stale(e uint64) bool {
	p.seenEpoch(e)
	return e < p.epoch
}

// openLessor begins a new stream with an origin: what it does not list as held stays with us; it will revoke it.
func (p *peer) openLessor(s *Scheduler, h *protocol.Hello) {
	p.seenEpoch(h.Epoch)
	p.grantsRead, p.pending, p.asking, p.askFrom, p.askPause, p.lastGrant = 0, 0, 0, 0, 0, 0
	p.ask = nil
	// Every outcome that is not answered goes over the new stream.
	p.results = p.results[:0]
	for _, a := range sortedAttempts(p.held) {
		if x := p.held[a]; x.outcome != nil {
			p.results = append(p.results, x)
		}
	}
	p.flushAt = s.now
	s.forgetJobs(p)
}

// forgetJobs lets go of the jobs of an origin whose stream has ended, but for those with attempts that still run here.
func (s *Scheduler) forgetJobs(p *peer) {
	for _, h := range p.held {
		h.detach()
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.jobs), protocol.JobID.Compare) {
		s.forgetUnused(p, p.jobs[id])
	}
}

// detach frees an attempt with an outcome from its job: it does without it.
func (h *held) detach() {
	if h.job != nil && h.outcome != nil {
		h.job.refs--
		h.job = nil
	}
}

func sortedAttempts[V any](m map[protocol.Attempt]V) []protocol.Attempt {
	return slices.SortedFunc(maps.Keys(m), protocol.Attempt.Compare)
}

// heldLists are the attempts of p here: queued and running ones, and those whose outcome it has not answered.
func (p *peer) heldLists() (queued, unanswered []protocol.Attempt) {
	for _, a := range sortedAttempts(p.held) {
		if p.held[a].outcome == nil {
			queued = append(queued, a)
		} else {
			unanswered = append(unanswered, a)
		}
	}
	return queued, unanswered
}

// keep books a held attempt.
func (p *peer) keep(h *held) {
	p.held[h.attempt] = h
	p.beaten = false
	if h.job != nil {
		h.job.refs++
	}
	if p.inputBytes += int64(h.input.bytes()); h.outcome != nil {
		p.countOutcome(h.outcome, 1)
	}
}

func (p *peer) countOutcome(o *protocol.Outcome, sign int64) {
	p.unansweredBytes += sign * outcomeSize(o)
	p.unansweredBlobs += sign * int64(min(o.OutputBlob.GetSize(), blobBound)+min(o.LogBlob.GetSize(), blobBound))
}

// blobBound keeps sums of sizes in range.
const blobBound = 1 << 40

// full says that an origin's outcomes have the room that they may have here.
func (p *peer) full() bool {
	return p.unansweredBytes > maxUnanswered || p.unansweredBlobs > maxUnansweredBlobs
}

// drop takes an attempt that is not queued off the books, and its job with the last one if nobody will say that it ended.
func (s *Scheduler) drop(p *peer, h *held) {
	j := h.job
	if p.held[h.attempt] == h {
		s.releaseBlobs(p, h)
	}
	p.drop(h)
	if j != nil && j.announcedOn != p.session && p.jobs[j.id] == j {
		s.forgetUnused(p, j)
	}
}

func (p *peer) drop(h *held) {
	if p.held[h.attempt] != h {
		return
	}
	delete(p.held, h.attempt)
	p.beaten = false
	if h.job != nil {
		h.job.refs--
	}
	if p.inputBytes -= int64(h.input.bytes()); h.outcome != nil {
		p.countOutcome(h.outcome, -1)
	}
	if h.running {
		h.running = false
		p.count(-1, 0)
	}
}

func outcomeSize(o *protocol.Outcome) int64 {
	return int64(len(o.Output)+len(o.Log)+len(o.Error)) + 128
}

// load is how many attempts are at work here.
type load struct{ running, queued int }

// count changes how many attempts of p run and are queued here.
func (p *peer) count(running, queued int) {
	p.runningHere += running
	p.queuedHere += queued
	p.here.running += running
	p.here.queued += queued
}

// enqueue makes h the last, or the first, of its job's queue.
func (p *peer) enqueue(h *held, first bool) {
	j := h.job
	if len(j.queue) == 0 {
		p.jobTurn = append(p.jobTurn, j)
	}
	if first {
		j.queue = slices.Insert(j.queue, 0, h)
	} else {
		j.queue = append(j.queue, h)
	}
	p.count(0, +1)
}

// dequeue removes h from its queue, if it is in it.
func (p *peer) dequeue(h *held) bool {
	j := h.job
	if j == nil || h.running || h.outcome != nil {
		return false
	}
	if h.missing > 0 {
		return p.stopWaiting(h)
	}
	i := slices.Index(j.queue, h)
	if i < 0 {
		return false
	}
	j.queue = slices.Delete(j.queue, i, i+1)
	p.count(0, -1)
	if len(j.queue) == 0 {
		p.jobTurn = slices.DeleteFunc(p.jobTurn, func(k *heldJob) bool { return k == j })
	}
	return true
}

// dropQueued forgets the queued attempts of an origin that is gone: it grants them anew.
func (s *Scheduler) dropQueued(p *peer) {
	for _, a := range sortedAttempts(p.held) {
		if h := p.held[a]; p.dequeue(h) {
			s.drop(p, h)
		}
	}
}

// jobInfo learns of a job, and has its program fetched and compiled before its tasks come.
func (s *Scheduler) jobInfo(p *peer, m *protocol.JobInfo) {
	if p.stale(m.Epoch) {
		return
	}
	id := protocol.JobID(m.Job)
	j := p.jobs[id]
	if j == nil {
		if len(p.jobs) >= maxJobs && !p.self {
			return // its tasks go back as those of a job that was not announced, until others have ended
		}
		j = &heldJob{id: id, info: m}
		if own := s.jobs[id]; p.self && own != nil {
			j.group = own.group
		}
		p.jobs[id] = j
	}
	j.announcedOn = p.session
	j.run.prior(int64(min(m.RunUs, uint64(1)<<40)) * microsecond)
	s.prepare(p, j)
}

// prepare has a job's program fetched and compiled, unless that was done, or it cannot run here. A node without slots
// does it when it gets some: most have none because their owner wants the machine for something else.
func (s *Scheduler) prepare(p *peer, j *heldJob) {
	m := j.info
	if j.state == preparing || j.state == prepared || j.state == invalid || s.wanted == 0 {
		return
	}
	local := s.localOf(p, j)
	if r := m.Program.Runtime; local.GetInterpreter() != "" {
		// It brings what runs it.
	} else if !runs(s.cfg.Runtimes, r) {
		j.state, j.why = unable, "this node does not run "+r
		return
	} else if !permits(p.mayUseHere, r) {
		j.state, j.why = unable, "this node does not run "+r+" for that origin"
		if !p.warned { // once for each stream: it may have a thousand such jobs
			p.warned = true
			s.tellPeer(Trespass, p, r)
		}
		return
	}
	if own, need := s.memoryOf(s.peers[s.cfg.Self]), m.Limits.GetMemoryBytes(); s.cfg.Memory > 0 && need > own {
		j.state, j.why = unable, fmt.Sprintf("a task may have %s of memory here, and the job wants %s", sizeText(own), sizeText(need))
		return
	}
	j.state = preparing
	s.out.Prepare = append(s.out.Prepare, Prepare{Origin: p.id, Info: m, Local: local})
}

// localOf is how an own job runs here, nil for others. An interpreter of another version than the program needs is not named.
func (s *Scheduler) localOf(p *peer, j *heldJob) *protocol.Local {
	own := s.jobs[j.id]
	if !p.self || own == nil || own.spec.Local == nil {
		return nil
	}
	l := own.spec.Local
	if !own.bringsInterpreter() {
		l = &protocol.Local{Path: l.Path, Dir: l.Dir}
	}
	return l
}

// bringsInterpreter says that the job's program runs at its origin on the interpreter of the submitting program, whatever the node has.
func (j *job) bringsInterpreter() bool {
	l, r := j.spec.Local, j.spec.Program.GetRuntime()
	return l.GetInterpreter() != "" && runs([]string{strings.TrimRight(r, versionDigits) + l.Version}, r)
}

func (s *Scheduler) prepared(ev Prepared) {
	p := s.peer(ev.Origin)
	j := p.jobs[ev.Job]
	if j == nil || j.state != preparing {
		return
	}
	switch {
	case ev.Invalid != "":
		j.state, j.why = invalid, ev.Invalid
		for _, h := range s.emptyQueue(p, j) {
			s.failed(p, h)
		}
	case ev.Unable != "":
		j.state, j.why = unable, ev.Unable
		s.giveBack(p, s.emptyQueue(p, j), protocol.Refusal_CANNOT_RUN, ev.Unable)
	default:
		j.state = prepared
	}
}

// failed ends a task whose program is no program.
func (s *Scheduler) failed(p *peer, h *held) {
	s.ended(p, h, &protocol.Outcome{Status: protocol.Status_INVALID, ExitCode: 125, Error: h.job.why})
}

func (s *Scheduler) emptyQueue(p *peer, j *heldJob) []*held {
	var hs []*held
	for _, h := range slices.Concat(j.queue, j.waits) {
		if p.dequeue(h) {
			hs = append(hs, h)
		}
	}
	return hs
}

// forgetUnused lets go of a job that has nothing here any more.
func (s *Scheduler) forgetUnused(p *peer, j *heldJob) {
	if j.refs > 0 {
		return
	}
	delete(p.jobs, j.id)
	if j.state != 0 {
		s.out.Prepare = append(s.out.Prepare, Prepare{Origin: p.id, Info: j.info, Drop: true})
	}
}

// granted queues the tasks of a Grant, or gives back what cannot be run here.
func (s *Scheduler) granted(p *peer, m *protocol.Grant) {
	if p.stale(m.Epoch) {
		return
	}
	p.grantsRead = max(p.grantsRead, m.Number)
	p.pending = m.Left
	s.noteAnswer(p, m)
	var cannot, noSlot []*held
	why := ""
	idle := s.wanted - s.atWork()
	room := idle + s.sparesHere()
	unwanted := m.Request == 0 && room <= 0 && !p.self
	for _, jg := range m.Jobs {
		j := p.jobs[protocol.JobID(jg.Job)]
		if j != nil {
			j.run.prior(int64(min(jg.RunUs, uint64(1)<<40)) * microsecond)
			p.run.prior(j.run.ns)
		}
		for _, t := range jg.Tasks {
			h := s.heldRoom.next()
			*h = held{
				attempt: protocol.Attempt{Job: protocol.JobID(jg.Job), Index: t.Index, N: t.N, Epoch: m.Epoch},
				mac:     t.Mac, input: Input{Data: t.Input, Blob: t.InputBlob, Blobs: t.Blobs}, number: t.Number, from: p, job: j, at: s.now,
				spare: t.Spare, alone: t.Alone,
			}
			if p.held[h.attempt] != nil {
				continue
			}
			switch {
			case s.refuses() != "":
				noSlot = append(noSlot, h)
			case j == nil:
				cannot, why = append(cannot, h), "the job was not announced"
			case j.state == unable:
				cannot, why = append(cannot, h), j.why
			case len(p.held) >= 2*maxHeld, p.full(), !p.self && (p.inputBytes > maxInputs || p.needs.tooMany(&h.input)):
				noSlot = append(noSlot, h)
			case unwanted, t.Spare && idle <= 0:
				noSlot = append(noSlot, h)
			default:
				p.keep(h)
				idle--
				if j.state == invalid {
					s.failed(p, h)
					break
				}
				if s.needBlobs(p, h); h.missing > 0 {
					p.await(h)
				} else {
					p.enqueue(h, false)
				}
			}
		}
	}
	s.giveBack(p, cannot, protocol.Refusal_CANNOT_RUN, why)
	s.giveBack(p, noSlot, protocol.Refusal_NO_SLOT, cmp.Or(s.refuses(), "no free slot"))
	p.beatSoon(s.now)
}

// giveBack returns attempts that were not started and now never will be. They may or may not be on the books.
func (s *Scheduler) giveBack(p *peer, hs []*held, why protocol.Refusal, reason string) {
	if len(hs) == 0 {
		return
	}
	as := make([]protocol.Attempt, len(hs))
	for i, h := range hs {
		as[i] = h.attempt
		s.drop(p, h)
	}
	s.send(p, &protocol.GiveBack{Epoch: p.epoch, Attempts: protocol.GroupAttempts(as), Why: why, Reason: cut(reason, 1024)})
}

// cut shortens a text for a message.
func cut(t string, n int) string { return strings.ToValidUTF8(t[:min(n, len(t))], "") }

// unavailable is why this node takes no work, or "".
func (s *Scheduler) unavailable() string { return cmp.Or(s.stopping, s.asleep, s.paused) }

// grants says that this node, as an origin, gives work to others.
func (s *Scheduler) grants() bool { return s.stopping == "" && s.asleep == "" }

// refuses is why nothing may be queued here, not even what was asked for, or "".
func (s *Scheduler) refuses() string {
	if s.wanted == 0 {
		return cmp.Or(s.unavailable(), "it has no slots any more")
	}
	return s.unavailable()
}

// startTasks fills the free slots, as those with something to start share them (share.go). This node's own tasks wait for
// no guest: they have all slots, and where guests have taken some, others besides until enough have ended.
func (s *Scheduler) startTasks() {
	if s.unavailable() != "" {
		s.ownWork = 0
		return
	}
	if h := s.lone; h != nil && (h.from.held[h.attempt] != h || h.outcome != nil || !h.running && !s.startable(h)) {
		s.lone = nil
	}
	busy := 0 // those of slots that were taken away count until they end
	for i := range s.slots {
		if s.slots[i].busy {
			busy++
		}
	}
	for ; ; busy++ {
		p, j := s.next(busy)
		if p == nil {
			break
		}
		if s.lone == nil && j.queue[0].alone {
			s.lone = j.queue[0]
		}
		if s.lone != nil {
			if busy > 0 {
				break // nothing overtakes it
			}
			p, j = s.lone.from, s.lone.job
			if j.queue[0] != s.lone {
				p.dequeue(s.lone)
				p.enqueue(s.lone, true)
			}
		}
		i := slices.IndexFunc(s.slots, func(sl slot) bool { return !sl.busy })
		if i < 0 {
			i = len(s.slots)
			s.slots = append(s.slots, slot{})
		}
		s.start(i, p, j)
	}
	s.topUp(busy)
	if s.dropSpare(busy) {
		s.startTasks()
		return
	}
	s.sendGuestsAway()
}

// startable says that a queued attempt could start if there was a slot.
func (s *Scheduler) startable(h *held) bool {
	return h.job != nil && h.job.state == prepared && s.confirmed(h.from) && !h.from.full() && s.most(h.job.group) > 0
}

// topUp gives slots that will soon have nothing left more of their job, if it were its turn again.
func (s *Scheduler) topUp(busy int) {
	for i := range s.slots {
		sl := &s.slots[i]
		if s.lone != nil || !sl.busy || len(sl.job.queue) == 0 || len(sl.items) > s.few(sl) {
			continue
		}
		if h := sl.job.queue[0]; h.spare || h.alone {
			continue // it needs a slot of its own
		}
		from, job := sl.from, sl.job
		from.claim.busy--
		job.claim.busy--
		job.group.take(-1)
		p, j := s.next(busy - 1)
		from.claim.busy++
		job.claim.busy++
		job.group.take(+1)
		if p == from && j == job {
			s.start(i, p, j)
		}
	}
}

// sparesHere is how many slots run a spare copy, which gives way.
func (s *Scheduler) sparesHere() int {
	n := 0
	for i := range s.slots {
		for _, h := range s.slots[i].items {
			if h.spare {
				n++
				break
			}
		}
	}
	return n
}

// dropSpare stops a spare copy if a first attempt waits for its slot: they run on idle capacity only. One at a time:
// the slot is free when the copy has stopped. It says that it is free now, for the copy was to start with this Ready.
func (s *Scheduler) dropSpare(busy int) bool {
	if p, j := s.next(busy - 1); p == nil || j.queue[0].spare {
		return false
	}
	slot, spare := -1, (*held)(nil)
	for i := range s.slots {
		if s.slots[i].busy && len(s.slots[i].items) == 0 {
			return false // one is stopping already
		}
		for _, h := range s.slots[i].items {
			if h.spare && len(s.slots[i].items) == 1 {
				slot, spare = i, h
			}
		}
	}
	if spare == nil {
		return false
	}
	s.slots[slot].items = nil
	s.stop(slot, []protocol.Attempt{spare.attempt})
	s.giveBack(spare.from, []*held{spare}, protocol.Refusal_NO_SLOT, "a first attempt needs its slot")
	return !s.slots[slot].busy
}

// next is whose tasks start next, with busy slots taken; nil: nobody's.
func (s *Scheduler) next(busy int) (*peer, *heldJob) {
	self := s.peers[s.cfg.Self]
	if self.claim.busy < s.wanted && !self.full() {
		if j := self.nextJob(); j != nil {
			return self, j
		}
	}
	if busy >= s.wanted || s.ownWaits() {
		return nil, nil
	}
	var best *peer
	var bestJob *heldJob
	for _, p := range s.line {
		if p.queuedHere == 0 || p.self || !s.confirmed(p) || p.full() || best != nil && s.guests.compare(p.claim, best.claim) >= 0 {
			continue
		}
		if j := p.nextJob(); j != nil {
			best, bestJob = p, j
		}
	}
	return best, bestJob
}

// confirmed says that an origin's tasks may start: its stream is there, it was heard within a lease's time, and since
// our own last pause. Otherwise it may have granted them to others.
func (s *Scheduler) confirmed(p *peer) bool {
	return p.self || p.up && p.answer == s.challenge && s.now <= p.heard+leaseTime
}

// batch is how many tasks of j go into one Start.
func (s *Scheduler) batch(j *heldJob) int {
	n := 1
	if d := j.run.ns; d > 0 && d <= singleFrom {
		// Not more than this slot's share of the queue: the others are idle too, or soon.
		slots := max(1, s.wanted) // none: what runs may still end
		n = max(1, min(int(batchTime/d), maxBatch, (len(j.queue)+slots-1)/slots))
	}
	n = min(n, len(j.queue))
	if k := slices.IndexFunc(j.queue[:n], func(h *held) bool { return h.alone }); k > 0 {
		n = k
	} else if k == 0 {
		n = 1
	}
	return n
}

// few is how many tasks left in a busy slot are so few that it gets more.
func (s *Scheduler) few(sl *slot) int {
	if len(sl.items) > 0 && s.now >= sl.items[0].started+stuckAfter {
		return 0
	}
	n := s.batch(sl.job)
	if d := sl.job.run.ns; n > 1 || d == 0 || d > aheadUpTo {
		return n / 2
	}
	if sl.from.pending == 0 && len(sl.job.queue) <= s.wanted {
		return 0 // the last ones, which somebody idle may want
	}
	for _, h := range sl.items {
		if h.spare {
			return 0 // it gives way to a first one, and then that must not be behind it
		}
	}
	return 1
}

func (s *Scheduler) start(i int, p *peer, j *heldJob) {
	n := s.batch(j)
	st := Start{Slot: i, Origin: p.id, Job: j.id}
	sl := &s.slots[i]
	if !sl.busy {
		sl.busy, sl.from, sl.job, sl.since = true, p, j, s.now
		p.claim.busy++
		j.claim.busy++
		j.group.take(+1)
	}
	sl.some = false
	s.guests.serve(&p.claim)
	p.turns.serve(&j.claim)
	st.Items = make([]Item, 0, n)
	sl.items = append(sl.items, j.queue[:n]...)
	for _, h := range j.queue[:n] {
		h.running, h.started = true, s.now
		st.Items = append(st.Items, Item{Attempt: h.attempt, Input: h.input, Number: h.number})
	}
	j.queue = j.queue[n:]
	p.count(n, -n)
	if len(j.queue) == 0 {
		p.jobTurn = slices.DeleteFunc(p.jobTurn, func(k *heldJob) bool { return k == j })
		j.queue = nil
	}
	s.out.Start = append(s.out.Start, st)
	if s.lone != nil {
		s.sendBeat(p) // it may take this node down before the next one is due: its origin has to know what ran
	}
}

// clear makes a slot one that nobody has.
func (sl *slot) clear() {
	if sl.busy {
		sl.from.claim.busy--
		sl.job.claim.busy--
		sl.job.group.take(-1)
	}
	*sl = slot{}
}

// stop ends attempts of a slot, whose items they are no more. One that this very Ready would start is left out of its
// Start, for Stops are carried out before.
func (s *Scheduler) stop(i int, as []protocol.Attempt) {
	for k := range s.out.Start {
		st := &s.out.Start[k]
		if st.Slot != i {
			continue
		}
		st.Items = slices.DeleteFunc(st.Items, func(it Item) bool { return slices.Contains(as, it.Attempt) })
		if len(st.Items) == 0 {
			s.out.Start = slices.Delete(s.out.Start, k, k+1)
			s.slots[i].clear()
		}
		return
	}
	s.out.Stop = append(s.out.Stop, Stop{Slot: i, Attempts: as})
}

// finished takes what a slot says of its items.
func (s *Scheduler) finished(ev Finished) {
	if ev.Slot < 0 || ev.Slot >= len(s.slots) {
		return
	}
	sl := &s.slots[ev.Slot]
	sl.some = sl.some || len(ev.Outcomes) > 0
	if sl.busy { // all that it was taken for counts: fetching inputs too, and what is stopped
		took := s.now - sl.since
		if s.lone != nil && s.lone.running { // it has all slots
			took *= int64(max(1, s.wanted))
		}
		sl.from.claim.used += took
		sl.job.claim.used += took
		sl.since = s.now
	}
	for _, o := range ev.Outcomes {
		h := sl.take(o.AttemptOf())
		if h == nil { // revoked meanwhile
			s.unpinOutcome(o)
			continue
		}
		p := h.from
		ran := int64(o.RunUs) * microsecond
		if o.Status == protocol.Status_OK {
			h.job.run.add(ran)
			p.run.add(ran)
		}
		o.QueuedUs += uint64(max(0, h.started-h.at) / microsecond)
		s.ended(p, h, o)
	}
	for _, a := range ev.Returned {
		if h := sl.take(a); h != nil {
			s.putBack(h, !sl.some)
		}
	}
	if ev.Idle && len(sl.items) == 0 { // else it has crossed a Start
		sl.clear()
		for len(s.slots) > s.wanted && !s.slots[len(s.slots)-1].busy {
			s.slots = s.slots[:len(s.slots)-1]
		}
	}
}

// take takes an item out of a slot, nil: it is not there. They end in their order, but for those that are stopped.
func (sl *slot) take(a protocol.Attempt) *held {
	i := slices.IndexFunc(sl.items, func(h *held) bool { return h.attempt == a })
	if i < 0 {
		return nil
	}
	h := sl.items[i]
	if i == 0 {
		sl.items[0] = nil
		sl.items = sl.items[1:]
	} else {
		sl.items = slices.Delete(sl.items, i, i+1)
	}
	return h
}

// putBack queues an attempt again that its slot did not run. Useless: nor anything else that came with it.
func (s *Scheduler) putBack(h *held, useless bool) {
	p := h.from
	h.running = false
	p.count(-1, 0)
	if reason := s.refuses(); reason != "" {
		s.giveBack(p, []*held{h}, protocol.Refusal_NONE, reason)
		return
	}
	if useless {
		if h.returns++; h.returns >= maxReturns {
			s.giveBack(p, []*held{h}, protocol.Refusal_CANNOT_RUN, "has no worker process for it, or no room for its input or output")
			return
		}
	}
	p.enqueue(h, true)
}

// ended keeps an outcome for its origin until it is answered.
func (s *Scheduler) ended(p *peer, h *held, o *protocol.Outcome) {
	a := h.attempt
	o.Job, o.Index, o.Epoch, o.N, o.Mac = a.Job[:], a.Index, a.Epoch, a.N, h.mac
	if h.running {
		h.running = false
		p.count(-1, 0)
	}
	s.releaseBlobs(p, h)
	p.inputBytes -= int64(h.input.bytes())
	h.outcome, h.input = o, Input{}
	p.countOutcome(o, 1)
	p.beaten = false
	if !p.self { // of an own task, the origin's record is enough
		if !p.throwAway { // of one that is, the outcome is to be had again sooner than this node
			s.record(HeldRecord{Origin: p.id, Outcome: o})
		}
		s.wentAway(p, s.awake())
	}
	if len(p.results) == 0 {
		p.flushAt = s.now + max(flushFirst, min(flushMost, p.waited.ns/4))
	}
	p.results = append(p.results, h)
}

// flushResults sends outcomes: at once if the origin has nothing queued here, or a job so small that somebody waits
// for each; else a little later, together.
func (s *Scheduler) flushResults() {
	for _, p := range s.line {
		s.flush(p)
	}
}

func (s *Scheduler) flush(p *peer) {
	if len(p.results) == 0 && p.ask == nil || !p.up {
		return
	}
	small := func(h *held) bool { return h.job == nil || h.job.info.Tasks <= uint64(s.wanted) }
	if !p.self && p.queuedHere > 0 && s.now < p.flushAt && p.ask == nil && !slices.ContainsFunc(p.results, small) {
		return
	}
	m, size := &protocol.Result{Outcomes: make([]*protocol.Outcome, 0, min(len(p.results), maxResults))}, 0
	for _, h := range p.results {
		if p.held[h.attempt] != h {
			continue
		}
		m.Outcomes = append(m.Outcomes, h.outcome)
		size += int(outcomeSize(h.outcome))
		if len(m.Outcomes) >= maxResults || size > maxResultBytes {
			s.send(p, m)
			m, size = &protocol.Result{}, 0
		}
	}
	switch {
	case len(m.Outcomes) > 0:
		m.Ask = p.ask
		s.send(p, m)
	case p.ask != nil:
		s.send(p, p.ask)
	}
	p.results, p.ask = nil, nil
}

// answered ends our duty to keep outcomes. Only their origin can say it: it is looked up under the sender.
func (s *Scheduler) answered(p *peer, m *protocol.ResultAnswer) {
	for i, gs := range [][]*protocol.Attempts{m.Accepted, m.Superseded, m.Unknown} {
		for _, a := range protocol.UngroupAttempts(gs) {
			h := p.held[a]
			if h == nil || h.outcome == nil {
				continue
			}
			s.drop(p, h)
			if !p.self || i > 0 { // the blobs of an own result that counts stay pinned, with the job
				s.unpinOutcome(h.outcome)
			}
			if !p.self {
				s.record(AnsweredRecord{p.id, a})
			}
		}
	}
}

func (s *Scheduler) unpinOutcome(o *protocol.Outcome) {
	for _, b := range []*protocol.Blob{o.OutputBlob, o.LogBlob} {
		if b != nil {
			s.out.Unpin = append(s.out.Unpin, protocol.BlobID(b.Id))
		}
	}
}

// revoked drops attempts that the origin does not count on. Outcomes stay until they are answered.
func (s *Scheduler) revoked(p *peer, m *protocol.Revoke) {
	if !p.stale(m.Epoch) {
		s.revokeHeld(p, protocol.UngroupAttempts(m.Attempts))
	}
}

func (s *Scheduler) revokeHeld(p *peer, as []protocol.Attempt) {
	stop := map[int][]protocol.Attempt{}
	for _, a := range as {
		h := p.held[a]
		switch {
		case h == nil || h.outcome != nil:
			continue
		case h.running:
			for i := range s.slots {
				if slices.Contains(s.slots[i].items, h) { // another origin may call its own the same
					s.slots[i].take(a)
					stop[i] = append(stop[i], a)
				}
			}
		default:
			p.dequeue(h)
		}
		s.drop(p, h)
	}
	for _, i := range sortedKeys(stop) {
		s.stop(i, stop[i])
	}
}

// jobCancelled ends a job here: it was cancelled, or is done.
func (s *Scheduler) jobCancelled(p *peer, m *protocol.Cancel) {
	if p.stale(m.Epoch) {
		return
	}
	id := protocol.JobID(m.Job)
	var as []protocol.Attempt
	for _, a := range sortedAttempts(p.held) {
		if a.Job == id {
			as = append(as, a)
		}
	}
	s.revokeHeld(p, as)
	if j := p.jobs[id]; j != nil {
		for _, h := range p.held { // only outcomes are left
			if h.job == j {
				h.detach()
			}
		}
		s.forgetUnused(p, j)
	}
}

func (s *Scheduler) setSlots(n int) {
	s.wanted = max(0, n)
	for len(s.slots) < s.wanted {
		s.slots = append(s.slots, slot{})
	}
	for len(s.slots) > s.wanted && !s.slots[len(s.slots)-1].busy {
		s.slots = s.slots[:len(s.slots)-1]
	}
	if s.wanted == 0 {
		s.returnQueued(s.refuses())
	}
	for _, p := range s.line {
		for _, id := range slices.SortedFunc(maps.Keys(p.jobs), protocol.JobID.Compare) {
			if j := p.jobs[id]; j.state == 0 {
				s.prepare(p, j)
			}
		}
	}
	s.beatAll()
}

func (s *Scheduler) setPaused(reason string) {
	s.paused = reason
	if reason != "" {
		s.returnQueued(reason)
	}
	s.beatAll()
}

// returnQueued gives back everything that waits here; of our own tasks too, others may run them.
func (s *Scheduler) returnQueued(reason string) {
	for _, p := range s.line {
		s.giveBack(p, s.emptyQueues(p), protocol.Refusal_NONE, reason)
	}
}

// emptyQueues takes all that p has queued here out of its queues.
func (s *Scheduler) emptyQueues(p *peer) []*held {
	var hs []*held
	for _, a := range sortedAttempts(p.held) {
		if h := p.held[a]; p.dequeue(h) {
			hs = append(hs, h)
		}
	}
	return hs
}

// shutdown gives back what others granted, running tasks too, and starts and grants no more.
func (s *Scheduler) shutdown(reason string) {
	if s.stopping != "" {
		return
	}
	s.stopping = cmp.Or(reason, "the node is stopping")
	s.returnQueued(s.stopping)
	for i := range s.slots {
		sl := &s.slots[i]
		var as []protocol.Attempt
		hs := sl.items
		slices.SortFunc(hs, func(a, b *held) int { return a.attempt.Compare(b.attempt) })
		for _, h := range hs {
			as = append(as, h.attempt)
		}
		if len(as) > 0 {
			s.stop(i, as)
			from := hs[0].from
			sl.items = nil
			s.giveBack(from, hs, protocol.Refusal_NONE, s.stopping)
		}
	}
	s.beatAll()
}
