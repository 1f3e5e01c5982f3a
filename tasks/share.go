package tasks

import (
	"cmp"

	"meshnode/protocol"
)

// Who gets what. Slot time is shared twice by the same rule: the slots of a worker among the origins that have work
// there, and among the jobs of one origin, both when it grants and when a worker starts what was granted. It is
// deficit round robin by slot time, not by number of tasks, and not by the length of anybody's queue: whoever had least comes
// next. A job of higher priority goes before all others of its origin, for as long as it has tasks; equal ones share.

// claim is what one of those that share slot time had of it.
type claim struct {
	used int64 // ns
	busy int   // slots that it has now; only a worker counts them
}

// turns is of those that share. level is the most that anybody served had had then: who comes new, or comes again, begins
// there, for nobody keeps what he did not use while he was away, and nobody pays for what nobody else wanted. credit, ns, is
// how far below it one may begin.
type turns struct{ level, credit int64 }

// jobCredit is the credit of jobs in grants. What they are charged is estimated, and put right only when tasks end: without it
// a job whose tasks differ would lose each time that one took less, and pay each time that one took more.
const jobCredit = second

// compare orders two claims, who comes next first. Slots come before their time, so that a newcomer with tasks of unknown
// length gets its share of the slots, and not every slot that becomes free until its first task has ended.
func (t turns) compare(a, b claim) int {
	return cmp.Or(cmp.Compare(a.busy, b.busy), cmp.Compare(max(a.used, t.level-t.credit), max(b.used, t.level-t.credit)))
}

// serve begins to serve a claim, which then is to be charged.
func (t *turns) serve(c *claim) {
	c.used = max(c.used, t.level-t.credit)
	t.level = max(t.level, c.used)
}

const (
	// quantum of estimated slot time is granted of one job before the next has its turn: it keeps the
	// tasks of a job together in a Grant.
	quantum = 10 * millisecond
	// unknownRun is what a granted task is charged before any of its job has ended.
	unknownRun = 10 * millisecond
	// mostRun is the most that a granted task is charged before it has ended: sums stay in range.
	mostRun = 3600 * second
)

// cost is the slot time that a task of j is charged when p gets it, ns; what it really took replaces it.
func (s *Scheduler) cost(p *peer, j *job) int64 {
	return max(min(cmp.Or(s.runOn(p, j), unknownRun), mostRun), microsecond)
}

// settle replaces what the job of a lease was charged for it by what it took.
func (l *lease) settle(o *protocol.Outcome, now int64) {
	l.job.claim.used += min(ran(o), now-l.at) - l.cost // never more than there was time
	l.cost = 0
}

// nextJob is the job whose pending tasks are granted next; nil: there is none. more says of how many of a job that may be.
func (s *Scheduler) nextJob(more func(*job) int) *job {
	var best *job
	for _, j := range s.active {
		if best != nil && s.before(best, j) || more(j) == 0 {
			continue
		}
		best = j
	}
	return best
}

// before says that a is served before b, which is the newer job: a new one goes before those that had as little.
func (s *Scheduler) before(a, b *job) bool {
	return cmp.Or(-cmp.Compare(a.spec.Priority, b.spec.Priority), s.turns.compare(a.claim, b.claim)) < 0
}

// nextJob is the job of p whose tasks start next here; nil: none can start.
func (p *peer) nextJob() *heldJob {
	var best *heldJob
	for _, j := range p.jobTurn {
		if j.state == prepared && j.group.mayStart() && (best == nil || p.compareJobs(j, best) < 0) {
			best = j
		}
	}
	return best
}

// guestsWait is how long a guest's tasks wait here for own ones. A short job of the machine's owner moves nothing;
// behind a long one they would wait for its end.
const guestsWait = second / 2

// ownWaits says that own tasks wait here, or will once they are asked for: they come before those of guests.
func (s *Scheduler) ownWaits() bool {
	self := s.peers[s.cfg.Self]
	return self.nextJob() != nil || self.pending > 0 && self.queuedHere == 0 // else: a program that is not ready yet
}

// sendGuestsAway gives the queued tasks of guests back if own ones keep them waiting.
func (s *Scheduler) sendGuestsAway() {
	self := s.peers[s.cfg.Self]
	waits := false
	for _, p := range s.line {
		waits = waits || p != self && p.queuedHere > 0
	}
	switch {
	case !waits || !s.ownWaits():
		s.ownWork = 0
	case s.ownWork == 0:
		s.ownWork = s.now
	case s.now >= s.ownWork+guestsWait:
		for _, p := range s.line {
			if p != self {
				s.giveBack(p, s.emptyQueues(p), protocol.Refusal_NO_SLOT, "the tasks of its owner come first")
			}
		}
		s.ownWork = 0
	}
}

// compareJobs orders two jobs of p, whose tasks start first here first.
func (p *peer) compareJobs(a, b *heldJob) int {
	return cmp.Or(-cmp.Compare(a.info.Priority, b.info.Priority), p.turns.compare(a.claim, b.claim))
}
