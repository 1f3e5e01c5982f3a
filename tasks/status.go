package tasks

import (
	"cmp"
	"slices"

	"meshnode/protocol"
)

// JobStatus is a job as its origin sees it.
type JobStatus struct {
	ID                                 protocol.JobID
	Spec                               *protocol.Job // not to be changed
	State                              JobState
	Reason                             string // how it ended, or the text of Wait
	Wait                               Reason // why no task of it runs, if it waits for something
	Closed                             bool
	Halted                             bool // ended by its halt rule: tasks without a result are in Failed
	Tasks, Done, Failed                uint32
	Running, Pending                   uint32
	Attempts, Stolen, Reissued, Spares uint32
	Elapsed                            int64   // ns since it was opened in this life, up to its end
	Shares                             []Share // the busiest first
}

// Share is what one worker did for a job.
type Share struct {
	Worker protocol.NodeID
	Tasks  uint32
	Busy   int64 // ns
}

// PeerStatus is a peer, or this node, as the scheduler sees it.
type PeerStatus struct {
	ID                     protocol.NodeID
	Self, Up, Suspect      bool
	Asleep                 bool // it said so when its stream ended
	Slots, Running, Queued int
	Unanswered             int // of this node: outcomes of other nodes\' tasks that it keeps
	Paused                 string
	Runtimes               []string
	Version                string
	Facts
}

// Job returns the status of a job; false: there is none.
func (s *Scheduler) Job(id protocol.JobID) (JobStatus, bool) {
	j := s.jobs[id]
	if j == nil {
		return JobStatus{}, false
	}
	return s.status(j), true
}

// Spec is what the job is, nil if there is none, and whether it has ended: of Job what costs nothing.
func (s *Scheduler) Spec(id protocol.JobID) (spec *protocol.Job, ended bool) {
	if j := s.jobs[id]; j != nil {
		return j.spec, j.state >= JobDone
	}
	return nil, false
}

// Jobs returns all jobs, in order of their IDs.
func (s *Scheduler) Jobs() []JobStatus {
	var out []JobStatus
	for _, j := range s.sortedJobs() {
		out = append(out, s.status(j))
	}
	return out
}

// Seq is the place of a task's result among the results of its job; false: it has none (yet).
func (s *Scheduler) Seq(id protocol.JobID, index uint32) (uint32, bool) {
	j := s.jobs[id]
	switch {
	case j == nil || index >= j.tasks.n:
		return 0, false
	case j.state >= JobDone:
		return j.seqs[index], j.seqs[index] != unended
	}
	t := j.tasks.at(index)
	return t.seq, t.state == terminal
}

// Ended is how many results a job has.
func (s *Scheduler) Ended(id protocol.JobID) uint32 {
	if j := s.jobs[id]; j != nil {
		return j.ended
	}
	return 0
}

func (s *Scheduler) status(j *job) JobStatus {
	st := JobStatus{
		ID: j.id, Spec: j.spec, State: j.state, Reason: j.reason, Closed: j.closed,
		Tasks: j.tasks.n, Done: j.ended - j.failed, Failed: j.failed,
		Running: uint32(j.leased), Pending: uint32(j.pending),
		Attempts: j.attempts, Stolen: j.stolen, Reissued: j.reissued, Spares: j.spares,
		Elapsed: s.now - j.openedAt,
	}
	if j.state >= JobDone {
		st.Elapsed = j.endedAt - j.openedAt
	} else if st.Running == 0 {
		st.State = JobWaiting
		st.Wait = s.waitReason(j)
		st.Reason = st.Wait.Text
	}
	if j.cancelled != "" {
		st.Halted = j.state == JobFailed
		st.Failed = st.Tasks - st.Done
		st.Running, st.Pending = 0, 0
	}
	for w, sh := range j.byWorker {
		if sh.tasks == 0 {
			continue
		}
		st.Shares = append(st.Shares, Share{w, sh.tasks, int64(sh.busyUS) * microsecond})
	}
	slices.SortFunc(st.Shares, func(a, b Share) int {
		return cmp.Or(-cmp.Compare(a.Busy, b.Busy), cmp.Compare(a.Worker, b.Worker))
	})
	return st
}

// Peers returns this node and all peers that were met in this life, in order of their IDs.
func (s *Scheduler) Peers() []PeerStatus {
	var out []PeerStatus
	for _, id := range s.order {
		p := s.peers[id]
		st := PeerStatus{
			ID: id, Self: p.self, Up: p.up, Suspect: p.up && s.suspect(p),
			Slots: p.slots, Running: p.running, Queued: p.queued, Paused: p.paused,
			Runtimes: p.runtimes, Facts: p.Facts, Version: p.version, Asleep: p.asleep != 0,
		}
		if p.self {
			st.Slots, st.Paused = s.wanted, s.unavailable()
			for _, q := range s.peers {
				st.Running += q.runningHere
				st.Queued += q.queuedHere
				if q != p {
					st.Unanswered += len(q.held) - q.runningHere - q.queuedHere
				}
			}
		}
		out = append(out, st)
	}
	return out
}
