package tasks

import (
	"meshnode/protocol"
)

// The tail of a job: nothing of it is pending any more, and some peers are idle while others still have work. First tasks
// that were not started move from the busiest peer to an idle one; then stragglers get a spare copy.

const (
	// recallLead is the least backlog in time, besides the way there and back, for which tasks move.
	recallLead = 2 * millisecond
	// recallPause keeps from asking a peer again that had nothing to give back.
	recallPause = 50 * millisecond
	// spareBlind is when a task whose duration nobody knows counts as a straggler.
	spareBlind = 30 * second
	// A spare copy should end within spareNum/spareDen of the time that the straggler has left.
	spareNum, spareDen = 8, 10
)

// finishTail moves work to peers that are idle while nothing is pending.
func (s *Scheduler) finishTail() {
	s.tailWake = 0
	if !s.grants() {
		return
	}
	var idle []*peer
	for _, j := range s.active {
		if j.leased == 0 || j.pending > 0 || j.halting != "" {
			continue
		}
		if idle == nil {
			for _, p := range s.line {
				if s.available(p) && s.hasIdleSlot(p) && s.now >= p.eagerFrom {
					idle = append(idle, p)
				}
			}
			if idle == nil {
				return
			}
		}
		if thief := s.fastest(idle, j); thief != nil && !s.rebalance(j, thief) && j.mayCopy() {
			s.spare(j, thief)
		}
	}
}

// hasIdleSlot says whether p has a slot that nobody wants.
func (s *Scheduler) hasIdleSlot(p *peer) bool {
	return s.free(p) > p.spares && (!p.self || s.atWork() < s.wanted)
}

// fastest is the idle peer that would run a task of j soonest.
func (s *Scheduler) fastest(idle []*peer, j *job) *peer {
	var best *peer
	for _, p := range idle {
		if s.canRun(p, j) && !s.inDoubt(p, j) && s.hasIdleSlot(p) && s.groupStarts(p, j) > 0 && (best == nil || s.runOn(p, j)+s.way(p, j) < s.runOn(best, j)+s.way(best, j)) {
			best = p
		}
	}
	return best
}

// rebalance recalls unstarted tasks from the peer with the largest backlog of j. What comes back is granted to the thief
// eagerly. The origin asks the victim itself: it knows all backlogs of its tasks, and each recall under way, so
// thieves do not herd. It says whether tasks are on their way.
func (s *Scheduler) rebalance(j *job, thief *peer) bool {
	var victim *peer
	var most int64 // the victim's backlog, ns
	var movable int
	under := false
	for _, p := range s.line {
		if len(p.leases) == 0 || p == thief || p.slotsHere(s) == 0 || !p.up {
			continue
		}
		if p.recalling != 0 { // one that never answers keeps nobody from a copy
			under = under || s.now < p.recalledAt+askTimeout
			continue
		}
		if s.now < p.recallFrom {
			continue
		}
		n := s.waiting(p, j)
		if n == 0 {
			continue
		}
		if b := int64(n) * max(1, s.runOn(p, j)) / int64(p.slotsHere(s)); b > most {
			victim, most, movable = p, b, n
		}
	}
	if victim == nil || most <= 2*(thief.wait+victim.wait)+s.missing(thief, j)+recallLead && s.runOn(victim, j) > 0 {
		return under
	}
	wt, wv := s.weight(thief, j), s.weight(victim, j)
	k := max(1, int(int64(movable)*wt/(wt+wv)))
	victim.recalls++
	victim.recalling, victim.recalledAt = victim.recalls, s.now
	s.tellPeer(Recalled, victim, some(k))
	s.send(victim, &protocol.Recall{Epoch: s.epoch, Id: victim.recalls, Count: uint32(k)})
	return true
}

// way is how long a task of j needs to p, with its bytes.
func (s *Scheduler) way(p *peer, j *job) int64 { return p.wait + s.missing(p, j) }

// waiting is how many tasks of j p holds and has not started that may still move.
func (s *Scheduler) waiting(p *peer, j *job) int {
	n := 0
	for _, l := range p.row {
		if l != nil && l.job == j && l.started == 0 && !l.spare && j.tasks.at(l.attempt.Index).moves < maxMoves {
			n++
		}
	}
	return n
}

// runOn is the mean run time of j's tasks on p, as far as known.
func (s *Scheduler) runOn(p *peer, j *job) int64 {
	if sh := j.byWorker[p.id]; sh != nil && sh.run.n > 0 {
		return sh.run.ns
	}
	return j.run.ns
}

// mayCopy says whether tasks of j may run twice: those of wasm cannot change anything but their result. Others, when asked for.
// A job that bounds its attempts at once has none.
func (j *job) mayCopy() bool {
	switch {
	case j.spec.MaxParallel > 0, j.spec.Spare == protocol.Spare_SPARE_OFF:
		return false
	case j.spec.Spare == protocol.Spare_SPARE_ON:
		return true
	}
	return j.spec.Program.GetRuntime() == "wasm"
}

// spare gives thief a second copy of the task that will end last, if the copy should end well before it.
func (s *Scheduler) spare(j *job, thief *peer) {
	var worst *lease
	var most int64
	ends := s.runOn(thief, j) + s.way(thief, j) // of the copy
	for _, l := range j.live {                  // whatever order: what is chosen does not depend on it
		if l == nil {
			continue
		}
		i := l.attempt.Index
		if l.also != nil || j.trouble[i] != nil || !l.kept || l.to == thief || l.started == 0 || s.fetchingFrom(j, l.attempt) {
			continue
		}
		usual, elapsed := s.runOn(l.to, j), s.now-l.started
		due := l.started + max(usual, ends*spareDen/spareNum) + 1 // when elapsed time alone makes it a straggler
		left := elapsed                                           // past its estimate: as long again
		switch {
		case l.to.asleep != 0:
			left = sleepMost // who knows
		case usual == 0:
			due = l.started + spareBlind
			if elapsed < spareBlind {
				left = 0
			}
		case elapsed < usual:
			left = usual - elapsed
		}
		switch {
		case (left > most || left == most && worst != nil && i < worst.attempt.Index) && ends*spareDen < left*spareNum:
			worst, most = l, left
		case due > s.now && (s.tailWake == 0 || due < s.tailWake):
			s.tailWake = due
		}
	}
	if worst == nil {
		return
	}
	s.inform(thief, j)
	a := s.lease(thief, j, worst.attempt.Index, worst.input)
	thief.grants++
	thief.told = uint64(s.pendingFor(thief))
	s.send(thief, &protocol.Grant{
		Epoch: s.epoch, Number: thief.grants, Left: thief.told,
		Jobs: []*protocol.JobGrant{{Job: j.id[:], RunUs: j.run.us(), Tasks: []*protocol.Assignment{a}}},
	})
	thief.beatSoon(s.now)
}
