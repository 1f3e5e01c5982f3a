package tasks

import (
	"fmt"
	"slices"

	"meshnode/protocol"
)

// answer is what an origin says to a result. Each lets the worker drop it.
type answer int8

const (
	accepted   answer = iota + 1 // it ended the task, or counts as one death of a worker process
	superseded                   // the task ended otherwise
	unknown                      // no such attempt was granted to you
)

// Acceptances to a worker that has more of our tasks wait for others for a time, in which it keeps the outcomes. They would
// be a quarter of all messages, and a sync of the disk each.
const (
	answerMost     = 250 * millisecond
	maxAnswers     = 512
	maxAnswerBytes = maxUnanswered / 16
)

// result takes an outcome from p. Whatever it is, it is answered, once the answer cannot change any more.
func (s *Scheduler) result(p *peer, o *protocol.Outcome) {
	a := o.AttemptOf()
	p.answerBytes += outcomeSize(o)
	j := s.jobs[a.Job]
	if j == nil || a.Index >= j.tasks.n {
		s.answer(p, a, unknown)
		return
	}
	l := p.leases[a]
	if (l == nil || l.number == 0 && !p.self) && !s.mac.verify(a, p.id, o.Mac) {
		// Not on the books, or only by the peer's own word, and not proved: it was never granted to p.
		if l != nil {
			s.takeBack([]*lease{l}, Unproved, "")
		}
		s.answer(p, a, unknown)
		return
	}
	if s.fetchingFrom(j, a) {
		return // the same again, over a new stream; answered when its bytes are here
	}
	if l != nil {
		l.settle(o, s.now)
	}
	if a.Epoch != s.epoch && j.state < JobDone {
		j.grantedEarlier(a)
	}
	if j.state >= JobDone || j.tasks.at(a.Index).state == terminal {
		s.answer(p, a, superseded)
		return
	}
	t := j.tasks.at(a.Index)
	switch {
	case o.Status == protocol.Status_WORKER_LOST:
		if l == nil {
			s.answer(p, a, superseded)
			return
		}
		if j.charged[a] { // the same again: its answer was lost with a stream
			s.dropLease(l)
			s.answer(p, a, accepted)
			return
		}
		if s.counts(p, j, a.Index) {
			j.troubleOf(a.Index).deaths++
		}
		s.tryAgain(p, j, a)
		s.dropLease(l)
		s.tell(ProcessDied, a, p, o.Error)
		if deaths := j.trouble[a.Index].deaths; deaths >= maxDeaths && t.state == pending {
			// A new Outcome: the worker, which may be this node, still keeps o.
			s.finish(j, a.Index, &protocol.Outcome{
				Job: o.Job, Index: o.Index, Epoch: o.Epoch, N: o.N, Mac: o.Mac,
				Status: protocol.Status_FAILED, ExitCode: o.ExitCode, Log: o.Log, QueuedUs: o.QueuedUs, RunUs: o.RunUs,
				Error: fmt.Sprintf("%s; the %d-th worker process lost with this task", o.Error, deaths),
			}, p.id)
		}
		s.answer(p, a, accepted)
	case o.Status != protocol.Status_OK && s.othersLive(j, a, p):
		// A failure counts only when no other attempt of the task lives.
		if !j.charged[a] {
			j.charged[a] = true
			s.counts(p, j, a.Index)
			j.troubleOf(a.Index).at = p.id
		}
		if l != nil {
			s.dropLease(l)
		}
		s.tell(NotCounted, a, p, o.Error)
		s.answer(p, a, superseded)
	case o.Status != protocol.Status_OK && !s.final(p, j, o):
		if l != nil {
			s.dropLease(l)
		}
		s.answer(p, a, superseded)
	case (o.OutputBlob != nil || o.LogBlob != nil) && !p.self:
		// Not terminal before its bytes are here and verified; the worker keeps them until the answer.
		j.fetching[a] = o
		f := Fetch{Attempt: a, Peer: p.id, Most: protocol.MaxOutputOf(j.spec.Program.GetRuntime()) + protocol.MaxLog}
		for _, b := range []*protocol.Blob{o.OutputBlob, o.LogBlob} {
			if b != nil {
				f.Blobs = append(f.Blobs, b)
			}
		}
		s.out.Fetch = append(s.out.Fetch, f)
	default:
		s.finish(j, a.Index, o, p.id)
		s.answer(p, a, accepted)
	}
}

// othersLive says whether the task of a has live attempts besides p's a.
func (s *Scheduler) othersLive(j *job, a protocol.Attempt, p *peer) bool {
	for l := j.leaseOf(a.Index); l != nil; l = l.also {
		if l.attempt != a || l.to != p {
			return true
		}
	}
	return false
}

func (s *Scheduler) fetchingFrom(j *job, a protocol.Attempt) bool {
	_, ok := j.fetching[a]
	return ok
}

// fetched goes on with a result whose bytes are here, or are not to be had.
func (s *Scheduler) fetched(ev Fetched) {
	a, p := ev.Attempt, s.peer(ev.Peer)
	j := s.jobs[a.Job]
	if j == nil || j.fetching[a] == nil {
		if ev.Err == "" { // the job was cancelled meanwhile: nobody needs the bytes
			s.out.Unpin = append(s.out.Unpin, ev.Blobs...)
		}
		s.answer(p, a, superseded)
		return
	}
	o := j.fetching[a]
	delete(j.fetching, a)
	over := j.state >= JobDone || j.tasks.at(a.Index).state == terminal
	switch {
	case ev.Err != "":
		if !p.up {
			return // it keeps the outcome, and brings it again on its next stream
		}
		if l := p.leases[a]; l != nil {
			s.takeBack([]*lease{l}, NotFetched, ev.Err)
		}
		if !over {
			s.refused(p, j.id, Unfetched, ev.Err, unfetchedFirst)
		}
		s.answer(p, a, unknown) // without its bytes it is worth nothing: run again
	case over:
		s.out.Unpin = append(s.out.Unpin, ev.Blobs...)
		s.answer(p, a, superseded)
	default:
		s.finish(j, a.Index, o, p.id)
		s.answer(p, a, accepted)
	}
}

// finish makes a task terminal: recorded, told, and every live attempt of it ended.
func (s *Scheduler) finish(j *job, i uint32, o *protocol.Outcome, w protocol.NodeID) {
	first := j.takeLeases(i)
	d := s.book(j, o, w)
	s.record(DoneRecord{Job: j.id, Done: d})
	s.notice(Notice{Kind: TaskDone, Job: j.id, Done: d})
	a := o.AttemptOf()
	switch {
	case w == "":
		s.tell(CancelledTask, a, s.peers[s.cfg.Self], o.Error)
	case o.Status == protocol.Status_OK:
		s.tell(Ended, a, s.peer(w), "")
	default:
		s.tell(EndedBadly, a, s.peer(w), o.Error)
	}
	for l := first; l != nil; l = l.also {
		s.unbook(l)
		if l.attempt != a || l.to.id != w {
			s.revoke(l.to, []protocol.Attempt{l.attempt})
		}
	}
	s.checkEnd(j)
	s.halt(j)
}

// maxRunUs is the most that counts of the time that a peer says its task took: sums and products stay in range.
const maxRunUs = 1 << 40

// ran is how long an outcome's attempt ran, ns, as its worker says. Our own clock is no bound: it stands still while we sleep.
func ran(o *protocol.Outcome) int64 { return int64(min(o.RunUs, maxRunUs)) * microsecond }

// book enters a terminal task into the books.
func (s *Scheduler) book(j *job, o *protocol.Outcome, w protocol.NodeID) *Done {
	t := j.tasks.at(o.Index)
	d := s.doneRoom.next()
	*d = Done{Seq: j.ended, Outcome: o, Worker: w, Attempts: uint32(t.grants)}
	switch t.state {
	case pending:
		s.unready(j, o.Index, nil)
		j.pending--
	case leased:
		j.leased--
	}
	t.state, t.seq = terminal, d.Seq
	j.ended++
	j.bytes += bytesOf(o)
	for _, b := range []*protocol.Blob{o.OutputBlob, o.LogBlob} {
		if b != nil {
			j.blobs = append(j.blobs, protocol.BlobID(b.Id))
		}
	}
	if o.Status != protocol.Status_OK {
		j.failed++
		if o.Status != protocol.Status_CANCELLED {
			j.bad++
		}
	}
	if w != "" {
		sh := j.share(w)
		ran := ran(o)
		sh.tasks++
		sh.busyUS += uint64(ran / microsecond)
		if o.Status == protocol.Status_OK { // a node that fails at once is not a fast one
			s.succeeded(j, sh, o.Index, w)
			sh.run.add(ran)
			j.run.add(ran)
		}
	}
	delete(j.trouble, o.Index)
	return d
}

// answer collects what p is told of its results; it is sent once the records that it rests on are synced.
func (s *Scheduler) answer(p *peer, a protocol.Attempt, v answer) {
	if v != accepted && slices.Contains(p.answers[accepted], a) {
		return // that it was accepted is about to be said
	}
	if p.answers == nil {
		p.answers, p.answersAt = map[answer][]protocol.Attempt{}, s.now+answerMost
	}
	p.answers[v] = append(p.answers[v], a)
}

func answerMessage(m map[answer][]protocol.Attempt) *protocol.ResultAnswer {
	return &protocol.ResultAnswer{
		Accepted:   protocol.GroupAttempts(m[accepted]),
		Superseded: protocol.GroupAttempts(m[superseded]),
		Unknown:    protocol.GroupAttempts(m[unknown]),
	}
}

// sendAnswers sends p what it is to be told.
func (s *Scheduler) sendAnswers(p *peer) {
	if len(p.answers) > 0 {
		s.sendDurable(p, answerMessage(p.answers))
		p.answers, p.answerBytes = nil, 0
	}
}

func (s *Scheduler) flushAnswers() {
	for _, p := range s.line {
		if len(p.answers) == 0 {
			continue
		}
		if n := len(p.answers[accepted]); len(p.leases) > 0 && s.grants() && s.now < p.answersAt &&
			len(p.answers) == 1 && 0 < n && n < maxAnswers && p.answerBytes < maxAnswerBytes {
			continue
		}
		s.sendAnswers(p)
	}
}
