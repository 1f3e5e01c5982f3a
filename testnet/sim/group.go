package sim

import (
	"encoding/binary"

	"meshnode/protocol"
	"meshnode/tasks"
)

// program is a client whose jobs are a group: it says how many of their tasks run at its own node at once, and says it again
// when that node was started anew.
type program struct {
	n     *node
	id    protocol.JobID
	limit int // below 0: none
}

// told is what a process was told of a limit.
type told struct {
	limit int
	at    int64
}

// limitGrace is how long what was decided before a change of a limit may still be on its way to the slots.
const limitGrace = 100 * ms

func (w *world) addProgram(n *node, limit int) *program {
	g := &program{n: n, limit: limit}
	binary.LittleEndian.PutUint64(g.id[:], hash64(w.seed, uint64(len(w.programs)), 0x67726f7570))
	w.programs = append(w.programs, g)
	return g
}

// set changes the limit from now on.
func (g *program) set(limit int) {
	g.limit = limit
	if g.n.p != nil {
		g.say(g.n.p)
	}
}

func (g *program) say(p *process) {
	limit := g.limit
	p.put(waiting{ev: tasks.SetGroup{Group: g.id, Limit: limit}, done: func(err error) {
		if err != nil && !p.stopErr(err) {
			p.n.w.fail("%v refuses the limit of a group: %v", p.n, err)
		}
		was, ok := p.limits[g.id]
		if at := p.n.w.now; !ok || was.limit != limit {
			p.limits[g.id] = told{limit, at}
		}
	}})
}

// checkGroup fails if a slot begins to run tasks of a program that has as many there as it wants.
func (p *process) checkGroup(x tasks.Start) {
	n, w := p.n, p.n.w
	j := w.jobs[x.Job]
	if j == nil || j.program == nil || x.Origin != n.id || p.slot[x.Slot] != nil {
		return
	}
	limit, said := p.limits[j.program.id]
	switch {
	case !said && p.restored[j.program.id] && n.clock() < p.born+10*sec:
		w.fail("%v starts tasks of %s before its program has said how many may run there", n, x.Job.Short())
		return
	case !said || limit.limit < 0 || w.now < limit.at+limitGrace:
		return
	}
	busy := 0
	for _, s := range p.slot {
		if k := w.jobs[s.job]; s.origin == n.id && k != nil && k.program == j.program {
			busy++
		}
	}
	if busy >= limit.limit {
		w.fail("%v starts tasks of %s in another slot: %d run tasks of its program, which wants %d", n, x.Job.Short(), busy, limit.limit)
	}
}

// groups: two jobs of one program, which changes its mind all the time, and one of another. Their node dies now and then.
func groups(w *world) {
	o := w.addNode(100, 1+w.rng.IntN(4))
	for range 1 + w.rng.IntN(3) {
		w.addNode(100, 1)
	}
	w.settleAt = 8 * sec
	w.maxRegrants = 0
	limits := []int{-1, 0, 0, 1, 2, 5}
	g := w.addProgram(o, limits[w.rng.IntN(len(limits))])
	for range 2 {
		j := w.jobAt(o, uint32(w.between(50, 400)), w.between(2*ms, 60*ms), w.between(200*ms, 2*sec))
		j.program, j.detached = g, w.chance(500)
	}
	w.jobAt(o, uint32(w.between(5, 50)), w.between(5*ms, 50*ms), w.between(200*ms, 4*sec))
	w.plague(w.between(150*ms, 900*ms), func(*world) { g.set(limits[w.rng.IntN(len(limits))]) })
	if w.chance(500) {
		w.plague(2*sec, func(w *world) { o.crash(w.chance(300), w.between(20*ms, 1500*ms)) })
		w.plague(3*sec, faultCut)
	}
}

// groupElsewhere: a program that wants nothing run at its own node, or little, gets all of the other nodes.
func groupElsewhere(w *world) {
	j := w.one(3, 200, 20*ms)
	o := j.n
	o.slots = 3
	most := w.rng.IntN(2)
	j.program = w.addProgram(o, most)
	w.settleAt = 8 * sec
	j.deadline = j.at + int64(200*20)*ms/int64(2+most) + 500*ms
	other := w.jobAt(o, 60, 20*ms, 600*ms) // has the slots that the program does not want
	other.deadline = other.at + 60*20*ms/3*2 + 300*ms
}
