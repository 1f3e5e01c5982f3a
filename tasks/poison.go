package tasks

import (
	"cmp"
	"fmt"

	"meshnode/protocol"
)

// Tasks that kill. A worker process that dies with a task costs that task one of four deaths (result.go): its node lives and
// says so. A node that is lost says nothing: switched off, asleep and killed by a task look the same from here. So a
// loss alone fails nothing. After two of them a task runs alone on a node, where nobody else is harmed and its losses are its own;
// and only those can end it.
const (
	// maxDeaths of worker processes end a task: it is the task that kills them.
	maxDeaths = 4
	// aloneAfter losses of nodes a task runs alone.
	aloneAfter = 2
	// maxLosses of nodes that ran it alone end a task; manyLosses where nodes are lost without it as well. At a mean
	// life of 60 s a task of 30 s is lost with 39 % of its nodes: six times in a row with 0.4 % of such tasks, 18 times with none.
	maxLosses  = 4
	manyLosses = 16
)

// blamed is what a lost node was charged to. If the same process comes back, it was not lost.
type blamed struct {
	attempt protocol.Attempt
	alone   bool
	ran     int64
}

// suspected says that a task is to run alone.
func (j *job) suspected(i uint32) bool {
	tr := j.trouble[i]
	return tr != nil && tr.losses >= aloneAfter
}

// nodeLost gives up what p holds, for it is gone without a word, and charges what ran there.
func (s *Scheduler) nodeLost(p *peer, c Code) {
	lone := false
	for _, l := range p.leases {
		lone = lone || l.alone && l.running
	}
	if !p.gone {
		if p.gone, p.countedLost = true, !lone; !lone {
			s.lost++
		}
	}
	if len(p.leases) == 0 {
		s.lose(p, c)
		return
	}
	p.blamed = nil
	for _, a := range sortedAttempts(p.leases) {
		l := p.leases[a]
		// Its beats tell of starts twice a second; that it was at the front of the queue is enough to suspect a task, and not enough
		// to end it. One that is to run alone has a beat of its own.
		if !l.running && (lone || l.alone || l.started == 0) {
			continue
		}
		b := blamed{a, l.alone, max(0, p.heard-cmp.Or(l.started, l.at))}
		p.blamed = append(p.blamed, b)
		tr := l.job.troubleOf(a.Index)
		if tr.losses++; l.alone {
			tr.alone++
			tr.aloneFor += b.ran
		}
		s.recordTrouble(l.job, a.Index)
	}
	s.lose(p, c)
	for _, b := range p.blamed {
		s.endPoison(p, b)
	}
}

// notLost takes back what the loss of p was charged to: it is the same process.
func (s *Scheduler) notLost(p *peer) {
	if p.countedLost {
		s.lost--
	}
	p.gone, p.countedLost = false, false
	for _, b := range p.blamed {
		j := s.jobs[b.attempt.Job]
		if j == nil || j.trouble[b.attempt.Index] == nil {
			continue
		}
		tr := j.trouble[b.attempt.Index]
		if tr.losses--; b.alone {
			tr.alone--
			tr.aloneFor -= b.ran
		}
		s.recordTrouble(j, b.attempt.Index)
	}
	p.blamed = nil
}

// endPoison ends a task that cost too many nodes.
func (s *Scheduler) endPoison(p *peer, b blamed) {
	a := b.attempt
	j := s.jobs[a.Job]
	if j == nil || j.state >= JobDone || !b.alone || j.tasks.at(a.Index).state != pending {
		return
	}
	tr := j.trouble[a.Index]
	if tr.alone < maxLosses || tr.alone < manyLosses && !s.losesOnlyBy(tr) {
		return
	}
	s.finish(j, a.Index, &protocol.Outcome{
		Job: a.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_FAILED, ExitCode: 125,
		Error: fmt.Sprintf("%d nodes were lost while they ran this task, %d of them ran nothing else: it seems to take them down", tr.losses, tr.alone),
	}, p.id)
}

// losesOnlyBy says that nodes are lost by tr's task: at the rate at which they are lost without a suspected task, less than a
// sixteenth of one would have been lost in the time that it ran alone.
func (s *Scheduler) losesOnlyBy(tr *trouble) bool {
	up := s.upTime
	for _, p := range s.line {
		if p.up && !p.self {
			up += s.now - p.upAt
		}
	}
	return tr.aloneFor/millisecond*int64(s.lost)*16 < up/millisecond
}
