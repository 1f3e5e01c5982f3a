package tasks

import (
	"cmp"
	"slices"

	"meshnode/protocol"
)

// Retention says how long what has ended is kept, in ns of awake time: a laptop that is opened once a week has its
// results for as many hours as one that never sleeps. Zero values are the defaults.
type Retention struct {
	Detached int64 // an ended detached job and its results: 7 days
	Attached int64 // an attached one, whose client had the results: a day, and at most as long as a detached one
	Outcomes int64 // a worker's outcomes, from when their origin was seen last: 7 days
	// Jobs, Tasks and Bytes are the most that ended jobs take together, whatever their age; the one that ended first goes
	// first, the last one stays. 10 000, 32 million (4 bytes of memory each) and, of inputs and results, no bound.
	Jobs  int
	Tasks int64
	Bytes int64
}

const (
	day = 24 * 3600 * second

	retainDetached = 7 * day
	retainAttached = day
	// retainOutcomes is how long an origin may sleep, be away or be repaired.
	retainOutcomes = 7 * day
	// retainThrowAway is the same of one that ends with the program that started it: it is not coming back.
	retainThrowAway = 60 * second
	retainJobs      = 10_000
	retainTasks     = 32 << 20
	// awakeEvery is how much awake time a crash may take away from what is kept: so much longer it stays.
	awakeEvery = 600 * second
)

func (r Retention) defaults() Retention {
	r.Detached = cmp.Or(r.Detached, retainDetached)
	r.Attached = min(cmp.Or(r.Attached, retainAttached), r.Detached)
	r.Outcomes = cmp.Or(r.Outcomes, retainOutcomes)
	r.Jobs = cmp.Or(r.Jobs, retainJobs)
	r.Tasks = cmp.Or(r.Tasks, retainTasks)
	return r
}

// retained is what the scheduler keeps of what has ended.
type retained struct {
	awoke int64 // awake time at the time began, of all lives of this data directory
	began int64
	noted int64 // the awake time that is on disk

	jobs  []*job // ended, the one that ended first at the front
	tasks int64  // of them
	bytes int64
	due   int64 // the awake time at which the first of them, or of the forgotten ids, is due; 0: nothing is

	// Of a forgotten job the id is refused for as long as a worker may still bring a result of it: it would count for a
	// new job of that id.
	forgotten map[protocol.JobID]int64 // until when, in awake time
	ids       []protocol.JobID         // of forgotten, in that order
}

// awake is the awake time now. The monotonic clock stands still while the machine sleeps.
func (s *Scheduler) awake() int64 { return s.kept.awoke + s.now - s.kept.began }

// bytesOf is what a terminal task takes on disk.
func bytesOf(o *protocol.Outcome) int64 {
	return outcomeSize(o) + int64(min(o.OutputBlob.GetSize(), blobBound)+min(o.LogBlob.GetSize(), blobBound))
}

// retire begins the time for which an ended job is kept.
func (s *Scheduler) retire(j *job) {
	k := &s.kept
	if !j.aged {
		j.endedAwake, j.aged = s.awake(), true
		s.record(EndedRecord{Job: j.id, At: j.endedAwake})
	}
	i, _ := slices.BinarySearchFunc(k.jobs, j, func(a, b *job) int {
		return cmp.Or(cmp.Compare(a.endedAwake, b.endedAwake), a.id.Compare(b.id))
	})
	k.jobs = slices.Insert(k.jobs, i, j)
	k.tasks += int64(j.tasks.n)
	k.bytes += j.bytes
	s.dueAt(s.until(j))
}

// until is the awake time up to which an ended job is kept.
func (s *Scheduler) until(j *job) int64 {
	if j.spec.Detached {
		return j.endedAwake + s.cfg.Retention.Detached
	}
	return j.endedAwake + s.cfg.Retention.Attached
}

func (s *Scheduler) dueAt(awake int64) {
	if k := &s.kept; k.due == 0 || awake < k.due {
		k.due = max(awake, 1)
	}
}

// retain forgets what was kept long enough, and the oldest of what is too much. It is called with each Ready, and does
// nothing then but compare.
func (s *Scheduler) retain() {
	k, r := &s.kept, s.cfg.Retention
	now := s.awake()
	if k.due != 0 && now >= k.due {
		k.due = 0
		for _, j := range slices.Clone(k.jobs) {
			if now >= s.until(j) && j.watched == 0 {
				s.forgetJob(j)
			} else if j.watched == 0 { // the end of a watch looks again
				s.dueAt(s.until(j))
			}
		}
		for len(k.ids) > 0 && now >= k.forgotten[k.ids[0]] {
			s.record(ReusableRecord{k.ids[0]})
			delete(k.forgotten, k.ids[0])
			k.ids = k.ids[1:]
		}
		if len(k.ids) > 0 {
			s.dueAt(k.forgotten[k.ids[0]])
		}
	}
	for i := 0; i < len(k.jobs)-1 && (len(k.jobs) > r.Jobs || k.tasks > r.Tasks || r.Bytes > 0 && k.bytes > r.Bytes); {
		if j := k.jobs[i]; j.watched == 0 {
			s.forgetJob(j)
		} else {
			i++
		}
	}
	for _, p := range s.line {
		if p.away && now >= p.awaySince+s.keepFor(p) {
			s.abandon(p)
		}
	}
	if (len(k.jobs) > 0 || len(k.ids) > 0 || s.anyAway()) && now >= k.noted+awakeEvery {
		k.noted = now
		s.record(AwakeRecord{now})
	}
}

func (s *Scheduler) anyAway() bool {
	return slices.ContainsFunc(s.line, func(p *peer) bool { return p.away })
}

// retainWake is when retain has something to do.
func (s *Scheduler) retainWake(at func(int64)) {
	k := &s.kept
	then := func(awake int64) { at(s.now + max(0, awake-s.awake())) }
	if k.due != 0 {
		then(k.due)
	}
	away := false
	for _, p := range s.line {
		if p.away {
			then(p.awaySince + s.keepFor(p))
			away = true
		}
	}
	if len(k.jobs) > 0 || len(k.ids) > 0 || away {
		then(k.noted + awakeEvery)
	}
}

// forgetJob drops an ended job with its results.
func (s *Scheduler) forgetJob(j *job) {
	k := &s.kept
	if i := slices.Index(k.jobs, j); i >= 0 {
		k.jobs = slices.Delete(k.jobs, i, i+1)
		k.tasks -= int64(j.tasks.n)
		k.bytes -= j.bytes
	}
	delete(s.jobs, j.id)
	until := s.awake() + s.cfg.Retention.Outcomes
	s.record(ForgetRecord{Job: j.id, Until: until})
	s.refuseID(j.id, until)
	s.out.Unpin = append(s.out.Unpin, j.blobs...)
}

// refuseID keeps the id of a forgotten job from being used again before that awake time.
func (s *Scheduler) refuseID(id protocol.JobID, until int64) {
	k := &s.kept
	if k.forgotten == nil {
		k.forgotten = map[protocol.JobID]int64{}
	}
	if _, ok := k.forgotten[id]; ok {
		return
	}
	k.forgotten[id] = until
	i, _ := slices.BinarySearchFunc(k.ids, until, func(id protocol.JobID, t int64) int { return cmp.Compare(k.forgotten[id], t+1) })
	k.ids = slices.Insert(k.ids, i, id)
	s.dueAt(until)
}

// watching notes how many clients read the results of a job: it is not forgotten under their eyes.
func (s *Scheduler) watching(ev Watching) {
	if j := s.jobs[ev.Job]; j != nil {
		if j.watched = max(0, ev.Count); j.watched == 0 && j.state >= JobDone {
			s.dueAt(s.until(j))
		}
	}
}

// keepFor is how long outcomes of p are kept once it is away.
func (s *Scheduler) keepFor(p *peer) int64 {
	if p.throwAway {
		return min(retainThrowAway, s.cfg.Retention.Outcomes)
	}
	return s.cfg.Retention.Outcomes
}

// wentAway notes, if it is not noted, since when an origin is away of which there are outcomes here.
func (s *Scheduler) wentAway(p *peer, since int64) {
	if p.self || p.up || p.away || len(p.held) == p.queuedHere+p.runningHere {
		return
	}
	p.away, p.awaySince = true, since
	s.record(AwayRecord{Origin: p.id, Since: since})
}

// present ends that.
func (s *Scheduler) present(p *peer) {
	if p.away {
		p.away = false
		s.record(AwayRecord{Origin: p.id, Since: -1})
	}
}

// abandon drops the outcomes of an origin that did not come back in time.
func (s *Scheduler) abandon(p *peer) {
	for _, a := range sortedAttempts(p.held) {
		if h := p.held[a]; h.outcome != nil {
			s.drop(p, h)
			s.unpinOutcome(h.outcome)
			s.record(AnsweredRecord{p.id, a})
		}
	}
	s.present(p)
}
