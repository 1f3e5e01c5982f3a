package tasks

import (
	"cmp"
	"fmt"
	"slices"

	"meshnode/protocol"
)

// Check says which invariant of the books is broken, if any. It is for tests and simulations: it reads everything.
// What needs more than one node's books, or its past, is checked by testnet/sim (I1, I3, I4, I5, I6, I10):
//
//   - I2: a task has no live attempt but on the books of its job and of its worker, and two only where one was adopted;
//   - I7: pending + leased + terminal = accepted, and each count is what its tasks say;
//   - a terminal task has no live attempt, a leased one has one, a pending one has none;
//   - each pending task can be taken: it is not yet reached by next, or in returned, or waits for another node, or its input is to be read again;
//   - the inputs in memory are those that are counted;
//   - a task is granted only where its job wants to run;
//   - a worker's attempt starts when all that it reads is here, and what nobody reads is let go;
//   - what a group has here is what its jobs and slots say, and of one that is to have nothing here nothing waits here;
//   - a worker's attempt is queued, running or unanswered, once, and is counted so, and so are the slots that an origin has.
func (s *Scheduler) Check() error {
	if s.unsettled {
		return fmt.Errorf("after %d rounds this node still talks to itself", maxRounds)
	}
	for _, j := range s.sortedJobs() {
		if err := s.checkJob(j); err != nil {
			return fmt.Errorf("job %s: %w", j.id.Short(), err)
		}
	}
	if !slices.IsSortedFunc(s.active, func(a, b *job) int { return cmp.Compare(a.number, b.number) }) {
		return fmt.Errorf("the active jobs are not in their order")
	}
	for _, j := range s.jobOrder {
		if j.isActive() && !j.active || j.active != slices.Contains(s.active, j) {
			return fmt.Errorf("job %s has something to do: %v; is active: %v", j.id.Short(), j.isActive(), j.active)
		}
	}
	for _, j := range s.active {
		if s.jobs[j.id] != j || j.state >= JobDone {
			return fmt.Errorf("job %s is active, and has ended", j.id.Short())
		}
	}
	if err := s.checkGroups(); err != nil {
		return err
	}
	leases, here := 0, load{}
	for _, id := range s.order {
		p := s.peers[id]
		for a, l := range p.leases {
			leases++
			if l.attempt != a || l.to != p || s.jobs[a.Job] != l.job {
				return fmt.Errorf("lease %v on the books of %s", l, id.Short())
			}
		}
		if err := s.checkHeld(p); err != nil {
			return fmt.Errorf("held of %s: %w", id.Short(), err)
		}
		here.running += p.runningHere
		here.queued += p.queuedHere
	}
	if here != s.here {
		return fmt.Errorf("%+v at work here in the books, %+v by the peers", s.here, here)
	}
	for _, j := range s.jobs {
		for range j.leases() {
			leases--
		}
	}
	if leases != 0 {
		return fmt.Errorf("%d leases more on the books of workers than of jobs", leases)
	}
	return nil
}

func (s *Scheduler) checkJob(j *job) error {
	if j.cancelled != "" {
		if len(j.live) > 0 {
			return fmt.Errorf("cancelled, with %d live tasks", len(j.live))
		}
		return nil
	}
	if j.state >= JobDone {
		if j.ended != j.tasks.n || len(j.live) > 0 || slices.Contains(j.seqs, unended) {
			return fmt.Errorf("it is %v with %d of %d tasks ended and %d live", j.state, j.ended, j.tasks.n, len(j.live))
		}
		return nil
	}
	takeable := map[uint32]bool{}
	for _, i := range j.returned {
		takeable[i] = j.has(i)
	}
	for _, i := range j.inputs.absent {
		takeable[i] = takeable[i] || !j.has(i)
	}
	for first, count := range j.inputs.loads {
		for i := first; i < first+count; i++ {
			takeable[i] = true
		}
	}
	for _, i := range j.suspects { // it may have been adopted and lost meanwhile, and wait for its input
		takeable[i] = takeable[i] || j.has(i)
	}
	for _, q := range j.elsewhere {
		for _, i := range q {
			takeable[i] = takeable[i] || j.has(i)
		}
	}
	var n [3]int
	ready, bytes, leasedBytes := 0, 0, 0
	for i := range j.tasks.n {
		t := j.tasks.at(i)
		n[t.state]++
		if t.state == pending && j.has(i) {
			ready++
		}
		live := 0
		for l := j.leaseOf(i); l != nil; l = l.also {
			live++
		}
		switch {
		case t.state == leased && live == 0, t.state != leased && live > 0, live > 2:
			return fmt.Errorf("task %d in state %d with %d live attempts", i, t.state, live)
		case t.state == pending && i < j.next && !takeable[i]:
			return fmt.Errorf("task %d is pending and nobody can take it", i)
		}
		for l := j.leaseOf(i); l != nil; l = l.also {
			if l.spare && !j.mayCopy() {
				return fmt.Errorf("task %d has a spare copy, and the job asks for none", i)
			}
			if j.spec.Placement != nil && l.to.fit(j) != None {
				return fmt.Errorf("task %d is granted to %s, which does not fit: %v", i, l.to.id.Short(), l.to.fit(j))
			}
			if l.kept {
				leasedBytes += l.input.size()
			}
			if l.to.leases[l.attempt] != l || l.attempt.Index != i || l.attempt.Epoch == s.epoch && l.attempt.N > t.n {
				return fmt.Errorf("task %d: lease %v is not its worker's, or has a number of the future", i, l)
			}
		}
	}
	for _, in := range j.inputs.ahead {
		bytes += in.size()
	}
	for i, in := range j.inputs.back {
		if bytes += in.size(); j.tasks.at(i).state != pending {
			return fmt.Errorf("task %d is not pending, and its input is there", i)
		}
	}
	if ready != j.ready || bytes != j.inputs.bytes || leasedBytes != j.inputs.leased || j.aheadEnd() > j.tasks.n {
		return fmt.Errorf("%d inputs of %d and %d bytes in the books; %d of %d and %d in truth; ahead to %d of %d", j.ready, j.inputs.bytes, j.inputs.leased,
			ready, bytes, leasedBytes, j.aheadEnd(), j.tasks.n)
	}
	if n[pending] != j.pending || n[leased] != j.leased || n[terminal] != int(j.ended) {
		return fmt.Errorf("%d pending, %d leased, %d ended in the books; %v by its tasks", j.pending, j.leased, j.ended, n)
	}
	if j.closed && j.ended == j.count && j.state < JobDone {
		return fmt.Errorf("all %d tasks ended, and it is %v", j.count, j.state)
	}
	return nil
}

func (s *Scheduler) checkGroups() error {
	self := s.peers[s.cfg.Self]
	for id, g := range s.groups {
		jobs, leases, busy, queued := 0, 0, 0, 0
		for _, j := range s.jobOrder {
			if j.group == g {
				jobs++
			}
		}
		for _, l := range self.leases {
			if l.job.group == g {
				leases++
			}
		}
		for i := range s.slots {
			if s.slots[i].busy && s.slots[i].job.group == g {
				busy++
			}
		}
		for _, j := range self.jobs {
			if j.group == g {
				queued += len(j.queue)
			}
		}
		if jobs != g.jobs || leases != g.leases || busy != g.busy || jobs == 0 && g.limit == noLimit {
			return fmt.Errorf("group %s: %+v in the books; %d jobs, %d attempts here in %d slots in truth", id.Short(), *g, jobs, leases, busy)
		}
		if queued > 0 && (g.unknown || g.limit == 0) {
			return fmt.Errorf("group %s: %d attempts wait here, and none is to run here", id.Short(), queued)
		}
	}
	return nil
}

func (s *Scheduler) checkHeld(p *peer) error {
	queued, running := map[protocol.Attempt]bool{}, 0
	var bytes, inputs int64
	refs, readers := map[*heldJob]int{}, map[protocol.BlobID]int{}
	for _, j := range p.jobs {
		for _, h := range j.queue {
			if queued[h.attempt] || p.held[h.attempt] != h || h.running || h.outcome != nil {
				return fmt.Errorf("%v queued twice, or not held, or running, or ended", h.attempt)
			}
			queued[h.attempt] = true
		}
		for _, h := range j.waits {
			if queued[h.attempt] || p.held[h.attempt] != h || h.running || h.outcome != nil || h.missing == 0 {
				return fmt.Errorf("%v waits for blobs twice, or for none, or is not held, or running, or ended", h.attempt)
			}
			queued[h.attempt] = true
		}
	}
	busy := 0
	for i := range s.slots {
		if s.slots[i].busy && s.slots[i].from == p {
			busy++
		}
		for _, h := range s.slots[i].items {
			if h.from == p {
				running++
				if p.held[h.attempt] != h || !h.running || h.outcome != nil {
					return fmt.Errorf("%v runs in slot %d and is not held so", h.attempt, i)
				}
			}
		}
	}
	for a, h := range p.held {
		inputs += int64(h.input.bytes())
		if h.job != nil {
			refs[h.job]++
		}
		switch {
		case h.outcome != nil:
			bytes += outcomeSize(h.outcome)
		case !h.running && !queued[a]:
			return fmt.Errorf("%v neither queued, running nor ended", a)
		}
		missing := 0
		h.input.reads(func(_ *protocol.Blob, id protocol.BlobID) {
			readers[id]++
			if n := p.needs.all[id]; n == nil || !n.here {
				missing++
			}
		})
		if missing != h.missing || !h.needs && missing > 0 {
			return fmt.Errorf("%v waits for %d blobs, and %d are not here", a, h.missing, missing)
		}
	}
	asked, needed := 0, int64(0)
	for id, n := range p.needs.all {
		if n.users != readers[id] || n.users == 0 && (!n.asked || n.here) || n.here && !n.asked {
			return fmt.Errorf("blob %s has %d readers in the books, %d in truth; asked for: %v, here: %v", id, n.users, readers[id], n.asked, n.here)
		}
		needed += int64(min(n.blob.Size, blobBound))
		if n.asked && !n.here {
			asked++
		}
		if !n.asked && !slices.Contains(p.needs.queue, n) {
			return fmt.Errorf("blob %s is never asked for", id)
		}
	}
	if needed != p.needs.bytes {
		return fmt.Errorf("%d bytes of blobs are needed in the books, %d in truth", p.needs.bytes, needed)
	}
	if asked != p.needs.obtains || asked > obtainsAtOnce || asked < obtainsAtOnce && len(p.needs.all) > 0 && slices.ContainsFunc(p.needs.queue, func(n *need) bool { return p.needs.all[n.id] == n && !n.asked }) {
		return fmt.Errorf("%d blobs are asked for in the books, %d in truth, and more are wanted", p.needs.obtains, asked)
	}
	for j, n := range refs {
		if j.refs != n || p.jobs[j.id] != j {
			return fmt.Errorf("job %s has %d attempts in the books, %d in truth, or is not known", j.id.Short(), j.refs, n)
		}
	}
	if busy != p.claim.busy {
		return fmt.Errorf("%d slots taken in the books, %d in truth", p.claim.busy, busy)
	}
	if inputs != p.inputBytes {
		return fmt.Errorf("%d bytes of inputs in the books, %d in truth", p.inputBytes, inputs)
	}
	if len(queued) != p.queuedHere || running != p.runningHere || bytes != p.unansweredBytes {
		return fmt.Errorf("%d queued, %d running, %d bytes in the books; %d, %d, %d in truth", p.queuedHere, p.runningHere, p.unansweredBytes, len(queued), running, bytes)
	}
	return nil
}
