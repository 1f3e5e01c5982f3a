package tasks

import (
	"cmp"
	"maps"
	"slices"

	"meshnode/protocol"
)

// A program may say how many of its tasks run at its own node at once (pp's ncpus), whatever jobs they are of: those jobs are a group.
// Other nodes are not limited by it. It may be changed at any time. What runs above a lowered limit ends; what is queued here above it goes back,
// for others. It is not kept: after a start of the node the client says it again, and until it has, nothing of the group
// runs here, for 10 s at most.

// group is what the jobs of a group share.
type group struct {
	id      protocol.JobID
	limit   int   // noLimit, or more than that
	unknown bool  // not said yet since the start of this node
	jobs    int   // of it that have not ended
	leases  int   // attempts of them that this node has, queued or running
	busy    int   // slots of this node that run such
	unused  int64 // since when it has no job, if it has none
}

const (
	noLimit = -1
	// maxGroups without a job are remembered: a program begins with a limit and no job, and has none now and then. That it has
	// ended nobody says.
	maxGroups = 1024
)

// groupOf finds a job's group, nil: it is in none.
func (s *Scheduler) groupOf(spec *protocol.Job) *group {
	id, err := protocol.JobIDFrom(spec.Group)
	if err != nil || id.IsZero() {
		return nil
	}
	g := s.groups[id]
	if g == nil {
		if s.groups == nil {
			s.groups = map[protocol.JobID]*group{}
		}
		g = &group{id: id, limit: noLimit, unused: s.now}
		s.groups[id] = g
	}
	return g
}

// leave is called when a job of g has ended.
func (s *Scheduler) leave(g *group) {
	if g == nil {
		return
	}
	if g.jobs--; g.jobs == 0 {
		g.unused = s.now
		s.forgetGroups()
	}
}

// forgetGroups forgets groups without a job: those without a limit, and those that have had none for longest if they are too many.
func (s *Scheduler) forgetGroups() {
	var unused []*group
	for id, g := range s.groups {
		switch {
		case g.jobs > 0:
		case g.limit == noLimit:
			delete(s.groups, id)
		default:
			unused = append(unused, g)
		}
	}
	if len(unused) <= maxGroups {
		return
	}
	slices.SortFunc(unused, func(a, b *group) int { return cmp.Or(cmp.Compare(a.unused, b.unused), a.id.Compare(b.id)) })
	for _, g := range unused[:len(unused)-maxGroups*7/8] { // more than one, for this takes its time
		delete(s.groups, g.id)
	}
}

func (s *Scheduler) setGroup(ev SetGroup) error {
	g := s.groups[ev.Group]
	if g == nil {
		if ev.Limit < 0 {
			return nil
		}
		g = s.groupOf(&protocol.Job{Group: ev.Group[:]})
	}
	g.limit, g.unknown = max(ev.Limit, noLimit), false
	s.forgetGroups()
	self := s.peers[s.cfg.Self]
	if g.leases > s.roomOf(g) {
		for _, id := range slices.SortedFunc(maps.Keys(self.jobs), protocol.JobID.Compare) {
			if j := self.jobs[id]; j.group == g {
				s.giveBack(self, s.emptyQueue(self, j), protocol.Refusal_NONE, "its program wants fewer of its tasks here")
			}
		}
	}
	return nil
}

// forgetUnknown ends the time in which the limits of groups from before the start of this node are awaited.
func (s *Scheduler) forgetUnknown() {
	for _, g := range s.groups {
		g.unknown = false
	}
	s.groupsFrom = 0
}

// bounded says that g limits what runs here.
func (g *group) bounded() bool { return g != nil && (g.unknown || g.limit != noLimit) }

// most is how many slots of this node may run tasks of g.
func (s *Scheduler) most(g *group) int {
	switch {
	case !g.bounded():
		return s.wanted
	case g.unknown:
		return 0
	}
	return min(g.limit, s.wanted)
}

// roomOf is how many attempts of g this node may have, with those that wait until others of them have ended.
func (s *Scheduler) roomOf(g *group) int {
	most := s.most(g)
	if most == 0 {
		return 0
	}
	_, high := s.low(s.peers[s.cfg.Self], most)
	return high
}

// groupRoom is how many more attempts of j p may have for its group; it is a limit of this node alone.
func (s *Scheduler) groupRoom(p *peer, j *job) int {
	if !p.self || !j.group.bounded() {
		return maxGrant
	}
	return max(0, s.roomOf(j.group)-j.group.leases)
}

// groupStarts is how many of these could start at once.
func (s *Scheduler) groupStarts(p *peer, j *job) int {
	if !p.self || !j.group.bounded() {
		return maxGrant
	}
	return max(0, s.most(j.group)-j.group.leases)
}

// mayStart says that another slot may run tasks of g.
func (g *group) mayStart() bool { return !g.bounded() || !g.unknown && g.busy < g.limit }

// take counts slots of this node that run tasks of g.
func (g *group) take(n int) {
	if g != nil {
		g.busy += n
	}
}
