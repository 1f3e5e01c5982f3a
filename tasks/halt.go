package tasks

import (
	"fmt"

	"meshnode/protocol"
)

// halt ends a job that has as many failed tasks as its submitter allows: at once, or when what runs has ended. A
// restart derives it from the results; see Restored.
func (s *Scheduler) halt(j *job) {
	h := j.spec.Halt
	if j.state >= JobDone || j.halting != "" || h.GetFailed() == 0 || j.bad < h.GetFailed() {
		return
	}
	j.halting = fmt.Sprintf("%d of its tasks failed, and so it was halted", j.bad)
	s.activate(j)
	if h.Now {
		return // endHalted does the rest
	}
	for _, p := range s.line {
		s.recallAll(p, j)
	}
}

// recallAll has p give back what it has not started of j.
func (s *Scheduler) recallAll(p *peer, j *job) {
	if sh := j.byWorker[p.id]; sh != nil && sh.live > 0 {
		p.recalls++
		p.recalling, p.recalledAt = p.recalls, s.now
		s.send(p, &protocol.Recall{Epoch: s.epoch, Id: p.recalls, Count: 2 * maxHeld, Job: j.id[:]})
	}
}

// endHalted ends the jobs that are halted: now, or because nothing of them runs any more.
func (s *Scheduler) endHalted() {
	for i := 0; i < len(s.active); {
		j := s.active[i]
		if j.halting == "" || !j.spec.Halt.GetNow() && (j.leased > 0 || len(j.fetching) > 0 || j.limboUntil != 0) {
			i++
			continue
		}
		s.record(CancelRecord{Job: j.id, Reason: j.halting, Halted: true})
		s.out.Sync = true
		s.cancelJob(j, JobFailed, j.halting) // takes it out of active
	}
}
