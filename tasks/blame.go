package tasks

import (
	"slices"

	"meshnode/protocol"
)

// Whose fault it is when an attempt fails: the task's, or that of the node that ran it. A failure of the task ends it, once its
// retries are used up; a node that fails what others can do must not end the tasks of a whole job (a black hole: it is
// always idle, for it fails at once, and so it gets the most).
const (
	// doubtAfter failures in a row of one job, where others succeed, a node is in doubt: it gets one task of the job at a
	// time, and its failures count only if the task fails elsewhere too. If others fail often as well, it may fail as many
	// times more in a row as they need attempts for one success.
	doubtAfter = 5
	// maxDoubts failures of one task do not count, the next one does: a task that no other node takes has to end.
	maxDoubts = 3
	// probeFirst is the first pause after a failure in doubt; it doubles up to cannotMost.
	probeFirst = 100 * millisecond
	// elsewhereFirst and elsewhereMost bound how long a task that failed waits for another node than that one. Twice its
	// mean run time is between them: by then the others have ended what they had.
	elsewhereFirst, elsewhereMost = second, 60 * second
)

// trouble is what a task that has not ended has been through. Most have none.
type trouble struct {
	failed   uint32 // attempts that failed, counted, and were tried again
	deaths   uint32 // of worker processes while they ran it
	losses   uint32 // of nodes while they ran it; see poison.go
	alone    uint32 // of these, while they ran nothing else,
	aloneFor int64  // for so long, ns
	doubts   uint32 // failures that did not count
	last     protocol.Attempt
	had      uint32          // attempts up to the last
	at       protocol.NodeID // where it failed last
	until    int64           // it waits for another node until then
}

func (j *job) troubleOf(i uint32) *trouble {
	tr := j.trouble[i]
	if tr == nil {
		tr = &trouble{}
		j.trouble[i] = tr
	}
	return tr
}

// share is what w did for j.
func (j *job) share(w protocol.NodeID) *share {
	sh := j.byWorker[w]
	if sh == nil {
		sh = &share{}
		j.byWorker[w] = sh
	}
	return sh
}

// wait makes a task whose input is in memory wait to be granted: for any node, for another one than that where it failed,
// or for one that runs nothing else meanwhile.
func (j *job) wait(i uint32) {
	switch tr := j.trouble[i]; {
	case j.suspected(i):
		if !slices.Contains(j.suspects, i) { // it may have been adopted meanwhile, and lost again
			j.suspects = append(j.suspects, i)
		}
		return
	case tr != nil && tr.at != "":
		j.elsewhere[tr.at] = append(j.elsewhere[tr.at], i)
		return
	}
	j.returned = append(j.returned, i)
}

// waitedLongEnough lets any node have the tasks for which no other node came.
func (s *Scheduler) waitedLongEnough() {
	for _, j := range s.active {
		for _, at := range sortedKeys(j.elsewhere) {
			for q := j.elsewhere[at]; ; q = q[1:] {
				if len(q) == 0 {
					delete(j.elsewhere, at)
					break
				}
				j.elsewhere[at] = q
				tr := j.trouble[q[0]]
				if j.tasks.at(q[0]).state != pending || tr == nil {
					continue
				}
				if s.now < tr.until {
					break
				}
				j.returned = append(j.returned, q[0])
			}
		}
	}
}

// elsewhereAt is when the next task of j has waited long enough for another node, 0: none waits.
func (j *job) elsewhereAt() int64 {
	at := int64(0)
	for _, q := range j.elsewhere {
		if tr := j.trouble[q[0]]; tr != nil && (at == 0 || tr.until < at) {
			at = tr.until
		}
	}
	return at
}

// others says whether another node than p could run tasks of j.
func (s *Scheduler) others(p *peer, j *job) bool {
	return slices.ContainsFunc(s.line, func(q *peer) bool {
		return q != p && q.slotsHere(s) > 0 && s.available(q) && s.canRun(q, j)
	})
}

// inDoubt says that p failed so many tasks of j in a row, while others do well, that it is not believed.
func (s *Scheduler) inDoubt(p *peer, j *job) bool {
	if j.failing == 0 {
		return false
	}
	sh := j.byWorker[p.id]
	if sh == nil || sh.streak < doubtAfter {
		return false
	}
	ok, failed := uint64(j.ended-j.failed-sh.done), uint64(j.fails-sh.fails) // of all others
	if ok > 0 && uint64(sh.streak)*ok < doubtAfter*(ok+failed) {
		return false
	}
	return slices.ContainsFunc(s.line, func(q *peer) bool { return q != p && s.doesWell(q, j) })
}

// doesWell says that q's tasks of j succeed, or that its first one runs: what comes of it is not known yet.
func (s *Scheduler) doesWell(q *peer, j *job) bool {
	sh := j.byWorker[q.id]
	if sh == nil || sh.streak >= doubtAfter || !s.available(q) || !s.canRun(q, j) {
		return false
	}
	if sh.done > 0 || sh.fails > 0 {
		return sh.done > 0
	}
	for _, l := range q.leases {
		// It may have begun after its last beat.
		if l.job == j && (q.self || l.running || s.now < l.at+suspectAfter) {
			return true
		}
	}
	return false
}

// open is how many pending tasks of j p may have now.
func (s *Scheduler) open(p *peer, j *job) int {
	n := min(s.grantable(j), s.groupRoom(p, j))
	switch {
	case n == 0 || !s.canRun(p, j) || s.tooFar(p, j):
		return 0
	case len(j.trouble) == 0 && j.failing == 0:
		return n
	}
	not := 0
	for _, i := range j.suspects {
		if j.tasks.at(i).state == pending && j.has(i) {
			not++
		}
	}
	if not > 0 && s.mayTakeSuspect(p, j) {
		not-- // one
	}
	if s.inDoubt(p, j) {
		if j.byWorker[p.id].live > 0 {
			return 0
		}
		for _, q := range j.elsewhere {
			not += len(q)
		}
		n = 1
	} else if q := j.elsewhere[p.id]; len(q) > 0 && s.others(p, j) {
		not += len(q)
	}
	return max(0, min(n, j.ready-not))
}

// mayTakeSuspect says that p may have a task that is to run alone: one at a time, and the origin only if nobody else can.
func (s *Scheduler) mayTakeSuspect(p *peer, j *job) bool {
	return len(j.suspects) > 0 && p.alone == 0 && !s.inDoubt(p, j) && !(p.self && s.others(p, j))
}

// take returns a pending task that p may have, and its input: first one that is to run alone, then those that wait for another node than that where they
// failed, then those that came back, then new ones.
func (s *Scheduler) take(p *peer, j *job) (uint32, Input, bool) {
	if s.mayTakeSuspect(p, j) {
		if i, in, ok := j.takeFrom(&j.suspects); ok {
			return i, in, true
		}
	}
	if len(j.elsewhere) > 0 && !s.inDoubt(p, j) {
		for _, at := range sortedKeys(j.elsewhere) {
			if at == p.id && s.others(p, j) {
				continue
			}
			q := j.elsewhere[at]
			i, in, ok := j.takeFrom(&q)
			if j.elsewhere[at] = q; len(q) == 0 {
				delete(j.elsewhere, at)
			}
			if ok {
				return i, in, true
			}
		}
	}
	if i, in, ok := j.takeFrom(&j.returned); ok {
		return i, in, true
	}
	for len(j.inputs.ahead) > 0 {
		i := j.next
		in := j.pass()
		if j.tasks.at(i).state == pending {
			j.ready--
			return i, in, true
		}
	}
	return 0, Input{}, false
}

// takeFrom takes the first task of a list that is still pending there.
func (j *job) takeFrom(list *[]uint32) (uint32, Input, bool) {
	for len(*list) > 0 {
		i := (*list)[0]
		*list = (*list)[1:]
		if j.tasks.at(i).state == pending {
			if in, ok := j.takeBack(i); ok {
				j.ready--
				return i, in, true
			}
		}
	}
	return 0, Input{}, false
}

// counts books that task i failed at p, or killed a worker process there, and says whether that counts.
func (s *Scheduler) counts(p *peer, j *job, i uint32) bool {
	sh, tr := j.share(p.id), j.trouble[i]
	there := tr != nil && tr.at != "" && tr.at != p.id // it failed at another node, too
	doubt := !there && (tr == nil || tr.doubts < maxDoubts) && s.inDoubt(p, j)
	sh.fails++
	j.fails++
	if sh.streak++; sh.streak == doubtAfter {
		j.failing++
	}
	switch {
	case doubt:
		j.troubleOf(i).doubts++
		if p.cannot[j.id].code != InDoubt {
			s.recallAll(p, j)
		}
		s.refused(p, j.id, InDoubt, "", probeFirst)
	case there && tr.doubts > 0 && !j.share(tr.at).wrong:
		s.believe(j, tr.at) // it was the task's fault
	}
	return !doubt
}

// believe ends the doubts about w.
func (s *Scheduler) believe(j *job, w protocol.NodeID) {
	sh := j.share(w)
	if sh.streak >= doubtAfter {
		j.failing--
	}
	sh.streak, sh.wrong = 0, false
	if p := s.peers[w]; p != nil && p.cannot[j.id].code == InDoubt {
		delete(p.cannot, j.id)
	}
}

// tryAgain books that an attempt of a pending or leased task failed at p and does not end it.
func (s *Scheduler) tryAgain(p *peer, j *job, a protocol.Attempt) {
	tr := j.troubleOf(a.Index)
	tr.last, tr.had, tr.at = a, uint32(j.tasks.at(a.Index).grants), p.id
	tr.until = s.now + max(elsewhereFirst, min(2*j.run.ns, elsewhereMost))
	j.charged[a] = true
	s.recordTrouble(j, a.Index)
}

func (s *Scheduler) recordTrouble(j *job, i uint32) {
	tr := j.trouble[i]
	tr.last.Job, tr.last.Index = j.id, i
	s.record(TroubleRecord{Job: j.id, Index: i, Attempts: tr.had, Last: tr.last, Failed: tr.failed, Deaths: tr.deaths, Losses: tr.losses})
}

// final says whether a failed outcome of a task without other live attempts ends it. If not, it is tried again.
func (s *Scheduler) final(p *peer, j *job, o *protocol.Outcome) bool {
	a := o.AttemptOf()
	if j.charged[a] { // the same again: its answer was lost with a stream
		return false
	}
	counts := s.counts(p, j, a.Index)
	if counts {
		if tr := j.trouble[a.Index]; o.Status == protocol.Status_INVALID || j.spec.Retries == 0 || tr != nil && tr.failed >= j.spec.Retries {
			return true
		}
		j.troubleOf(a.Index).failed++
		s.tell(TriedAgain, a, p, o.Error)
	} else {
		s.tell(Doubted, a, p, o.Error)
	}
	s.tryAgain(p, j, a)
	return false
}

// restoreTrouble takes what a task went through in an earlier life.
func (j *job) restoreTrouble(r TroubleRecord) {
	if r.Index >= j.tasks.n || j.tasks.at(r.Index).state == terminal || j.cancelled != "" {
		return
	}
	tr := j.troubleOf(r.Index)
	tr.failed, tr.deaths, tr.losses, tr.last, tr.had = r.Failed, r.Deaths, r.Losses, r.Last, r.Attempts
	j.tasks.at(r.Index).grants = uint16(min(r.Attempts, 1<<16-1))
	if r.Last.N > 0 {
		j.charged[r.Last] = true
	}
}

// grantedEarlier counts an attempt of an earlier life of this node, as far as its number tells.
func (j *job) grantedEarlier(a protocol.Attempt) {
	n := a.N
	if tr := j.trouble[a.Index]; tr != nil {
		n += tr.had
		if a.Epoch == tr.last.Epoch {
			n -= min(n, tr.last.N)
		}
	}
	t := j.tasks.at(a.Index)
	t.grants = max(t.grants, uint16(min(n, 1<<16-1)))
}

// Tries is what a task that has not ended has been through.
type Tries struct {
	Attempts uint32          // granted so far
	Failed   uint32          // of these, that failed and counted, and were tried again
	Deaths   uint32          // of worker processes
	Losses   uint32          // of nodes that ran it
	Alone    bool            // it runs alone on a node from now on, for of that
	Doubts   uint32          // failures that did not count, as their node fails what others can do
	At       protocol.NodeID // where it failed last
}

// Tries returns what a task has been through; false: there is no such task, or it has ended.
func (s *Scheduler) Tries(id protocol.JobID, index uint32) (Tries, bool) {
	j := s.jobs[id]
	if j == nil || j.state >= JobDone || index >= j.tasks.n || j.tasks.at(index).state == terminal {
		return Tries{}, false
	}
	t := Tries{Attempts: uint32(j.tasks.at(index).grants)}
	if tr := j.trouble[index]; tr != nil {
		t.Failed, t.Deaths, t.Losses, t.Alone, t.Doubts, t.At = tr.failed, tr.deaths, tr.losses, j.suspected(index), tr.doubts, tr.at
	}
	return t, true
}

// succeeded books that a task ended well at w.
func (s *Scheduler) succeeded(j *job, sh *share, i uint32, w protocol.NodeID) {
	sh.done++
	if sh.streak > 0 || sh.wrong {
		s.believe(j, w)
	}
	if tr := j.trouble[i]; tr != nil && tr.doubts > 0 && tr.at != w {
		j.share(tr.at).wrong = true
	}
}
