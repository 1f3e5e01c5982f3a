package tasks

import (
	"maps"
	"slices"

	"meshnode/protocol"
)

// expelled ends all that is between this node and p at once: no grace for its stream, and nothing of it goes on here. What it
// holds is granted anew. Its stream may still be there; nothing of it counts any more.
func (s *Scheduler) expelled(ev Expelled) {
	p := s.peers[ev.Peer]
	if p == nil || p.self {
		return
	}
	if p.up {
		s.upTime += s.now - p.upAt
		p.up, p.downAt = false, s.now
		s.tellPeer(Disconnected, p, ev.Reason)
	}
	p.gone = true
	s.lose(p, NodeExpelled)
	s.revokeHeld(p, sortedAttempts(p.held))
	s.abandon(p)
	s.forgetJobs(p)
}

// setPolicy obeys what the owner of this machine says of p, for what is under way as well.
func (s *Scheduler) setPolicy(ev SetPolicy) {
	p := s.peers[ev.Peer]
	if p == nil || p.self {
		return
	}
	if ev.Name != "" && ev.Name != p.Name {
		p.Name, p.fits = ev.Name, map[protocol.JobID]Code{}
	}
	if slices.Equal(p.mayUseHere, ev.MayUseHere) && slices.Equal(p.mayUseThere, ev.MayUseThere) {
		return
	}
	p.mayUseHere, p.mayUseThere, p.warned = ev.MayUseHere, ev.MayUseThere, false
	for _, id := range slices.SortedFunc(maps.Keys(p.jobs), protocol.JobID.Compare) {
		j := p.jobs[id]
		switch allowed := permits(p.mayUseHere, j.info.Program.GetRuntime()); {
		case allowed && j.state == unable:
			s.prepare(p, j)
		case !allowed && j.state != invalid:
			s.deny(p, j)
		}
	}
	var away []*lease
	var as []protocol.Attempt
	for _, a := range sortedAttempts(p.leases) {
		if l := p.leases[a]; !permits(p.mayUseThere, l.job.spec.Program.GetRuntime()) {
			away, as = append(away, l), append(as, a)
		}
	}
	s.takeBack(away, NotAllowed, "")
	s.revoke(p, as)
}

// deny gives back what is here of a job that its origin may not run here any more, running tasks too.
func (s *Scheduler) deny(p *peer, j *heldJob) {
	back := s.emptyQueue(p, j)
	for i := range s.slots {
		var as []protocol.Attempt
		for _, h := range slices.Clone(s.slots[i].items) {
			if h.job == j {
				as = append(as, h.attempt)
				back = append(back, s.slots[i].take(h.attempt))
			}
		}
		if len(as) > 0 {
			s.stop(i, as)
		}
	}
	if j.state != 0 { // else there is nothing to let go of yet
		j.state = unable
	}
	j.why = "this node does not run " + j.info.Program.GetRuntime() + " for that origin"
	slices.SortFunc(back, func(a, b *held) int { return a.attempt.Compare(b.attempt) })
	s.giveBack(p, back, protocol.Refusal_CANNOT_RUN, j.why)
}
