package tasks

import (
	"cmp"

	"meshnode/protocol"
)

// A machine that sleeps. Where its system tells us before (Sleep), what has not started goes back, what runs stays where it
// is, and the others are told; where it does not, the clocks say afterwards that it slept (Woke). The time of Step stands
// still in a sleep: what counts awake time needs nothing more.
const (
	// returnTime is how long after our own sleep, or a pause that others have noticed, the workers of our tasks may take to
	// be heard again: they have cut the connections, and a network needs seconds to be there again.
	returnTime = 10 * second
	// noticedAfter so long a pause of our own, others may have cut their connections to us: they do it when nothing has come for
	// the time of a lease, and our last beat was up to half a second and its way old.
	noticedAfter = leaseTime - beatEvery - 500*millisecond
	// What ran at a worker that went to sleep is granted elsewhere only after it has slept for as long as the task had run: so at
	// most twice of what was needed is spent, whether the lid is opened after a minute or after a night. At least sleepFirst: an
	// aborted sleep takes no longer; at most sleepMost: somebody waits for it.
	sleepFirst = leaseTime
	sleepMost  = 600 * second
)

// sleep is what is done before the machine sleeps.
func (s *Scheduler) sleep(reason string) {
	if s.stopping != "" || s.asleep != "" {
		return
	}
	s.asleep = cmp.Or(reason, "it goes to sleep")
	s.returnQueued(s.asleep)
	s.beatAll() // with what stays here
}

// woke is what is done after the machine slept, or was to sleep and did not.
func (s *Scheduler) woke() {
	s.asleep = ""
	s.interrupted(true)
	s.beatAll()
}

// interrupted begins anew with the others after a time in which we did not see them: nothing queued for another node starts before that
// node has answered, for it may long have given the task to somebody else; and if they may have cut us off, whoever has
// tasks of ours gets time to return.
func (s *Scheduler) interrupted(noticed bool) {
	s.challenge++
	for _, p := range s.line {
		if noticed && len(p.leases) > 0 && p.heard >= p.absentFrom { // once for each of its silences
			p.absentFrom, p.absentUntil = s.now, s.now+returnTime
		}
		if p.queuedHere > 0 {
			s.sendBeat(p) // the challenge: its tasks wait for the answer
		}
	}
}

// fellAsleep keeps what runs at p, which has said that it goes to sleep, for a while; the rest it gave back, or never read.
func (s *Scheduler) fellAsleep(p *peer) {
	p.asleep = max(1, s.now)
	var rest []*lease
	p.taken = map[protocol.Attempt]bool{}
	for a, l := range p.leases {
		if !p.listed[a] {
			rest = append(rest, l)
		}
	}
	s.takeBack(rest, NodeLeft, "")
}

// sleepsUntil is when the task of a lease at a sleeping worker is granted elsewhere.
func (p *peer) sleepsUntil(l *lease) int64 {
	ran := int64(0)
	if l.started != 0 {
		ran = p.asleep - l.started
	}
	return p.asleep + max(sleepFirst, min(ran, sleepMost))
}

// oversleep takes back what a sleeping worker has had for too long. It may bring it still, if nobody else has it by then.
func (s *Scheduler) oversleep(p *peer) {
	var late []*lease
	for a, l := range p.leases {
		if s.now >= p.sleepsUntil(l) {
			late = append(late, l)
			p.taken[a] = true
		}
	}
	s.takeBack(late, NodeAsleep, "")
}

// lossDue is when what p holds counts as lost, if nothing is heard of it; 0: not before we have woken, or there is nothing.
func (s *Scheduler) lossDue(p *peer) int64 {
	switch {
	case len(p.leases) == 0 || s.asleep != "":
		return 0
	case p.up:
		return max(p.renewed+leaseTime, p.absentUntil)
	case p.asleep == 0:
		return max(p.downAt+resetGrace, p.absentUntil)
	}
	due := int64(0)
	for _, l := range p.leases {
		if t := p.sleepsUntil(l); due == 0 || t < due {
			due = t
		}
	}
	return due
}
