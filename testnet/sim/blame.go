package sim

import (
	"math"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Worlds in which somebody is to blame: a node that fails everything, a task that takes its nodes down, attempts that fail now and
// then; and worlds in which nobody is, and nodes die all the same.

// maxRuined tasks of a job may fail for one node that fails everything: those that it is granted before anybody can know. 3 is
// usual; the most in 357 worlds was 11.
const maxRuined = 12

// flaky says whether an attempt fails though another one of the same task may not.
func (j *job) flaky(a protocol.Attempt) bool {
	return int(hash64(j.seed, uint64(a.Index), 8, a.Epoch, uint64(a.N))%1000) < j.flakyPer
}

// kills says that the task takes its node down, if that is not the origin.
func (j *job) kills(i uint32, n *node) bool { return j.one(i, 9, j.killPer) && n != j.n }

// excused says whether a task may have failed with nothing wrong in its program.
func (w *world) excused(j *job, r tasks.DoneRecord) bool {
	t := protocol.TaskID{Job: j.id, Index: r.Done.Outcome.Index}
	by := w.byID[r.Done.Worker]
	switch {
	case by != nil && by.hole:
		if w.ruined++; w.ruined > maxRuined {
			w.fail("budget: %v, which fails everything, ruined %d tasks", by, w.ruined)
		}
		return true
	case w.killed[t] >= 4: // the first two may have been taken down by another one
		return true
	}
	return j.flakyPer > 0 && w.brokeOf[t] > int(j.retries)
}

// bad is how many tasks of a job had failed before a batch was written.
func (b *jobBook) bad(before int) uint32 {
	n := uint32(0)
	for _, d := range b.done {
		if d.status != protocol.Status_OK && d.status != protocol.Status_CANCELLED && d.batch < before {
			n++
		}
	}
	return n
}

// blackHole is a node that fails every task in 2 ms, among good ones.
func blackHole(w *world) {
	j := w.one(3+w.rng.IntN(4), uint32(w.between(200, 1000)), []int64{20 * ms, 100 * ms, 400 * ms}[w.rng.IntN(3)])
	j.spread = spread(w.rng.IntN(2))
	j.failPer = []int{0, 0, 20}[w.rng.IntN(3)]
	j.retries = uint32([]int{0, 0, 2}[w.rng.IntN(3)])
	hole := w.nodes[1+w.rng.IntN(len(w.nodes)-1)]
	hole.hole = true
	for _, n := range w.nodes {
		n.slots = 1 + w.rng.IntN(4)
	}
	w.bound = 600 * sec
	w.settleAt = 2 * sec
	w.checkEach = 20
	w.maxRegrants, w.extra = 1.1, 150 // what it was granted before anybody could know
}

// badProgram fails everywhere: no node is to blame for it, and the job ends as soon as if nobody looked.
func badProgram(w *world) {
	j := w.one(3, 600, 20*ms)
	j.failPer = []int{1000, 900, 500}[w.rng.IntN(3)]
	j.retries = uint32(w.rng.IntN(2))
	w.settleAt = 1 * sec
	w.checkEach = 20
	j.deadline = j.at + 7*sec*int64(1+j.retries) // each of three nodes has 4 s of work
	w.maxRegrants, w.extra = 1.05*float64(1+j.retries), 12
}

// lifeOf60 is a mesh whose workers live a minute each, with tasks of half a minute: none of them may fail.
func lifeOf60(w *world) {
	j := w.one(3+w.rng.IntN(4), uint32(w.between(50, 60)), 30*sec)
	j.n.slots = 0
	j.detached = true
	w.settleAt = 900 * sec
	w.bound = 1200 * sec
	w.checkEach = 20
	for _, n := range w.nodes[1:] {
		n.slots = 1 + w.rng.IntN(2)
		var again func()
		again = func() {
			w.after(int64(-60e9*math.Log(float64(w.between(1, 1<<30))/(1<<30))), func() {
				if w.now < w.settleAt {
					n.crash(w.chance(300), w.between(500*ms, 5*sec))
					again()
				}
			})
		}
		again()
	}
}

// killer has tasks that take their node down: each ends after six nodes, and all others go well.
func killer(w *world) {
	j := w.one(3+w.rng.IntN(3), uint32(w.between(30, 120)), []int64{50 * ms, 800 * ms}[w.rng.IntN(2)])
	j.killPer = []int{10, 40}[w.rng.IntN(2)]
	j.detached = true
	for _, n := range w.nodes {
		n.slots = 1 + w.rng.IntN(3)
	}
	j.at = 180 * sec
	w.settleAt = 190 * sec
	w.bound = 600 * sec
	w.checkEach = 10
	w.maxKills = 8 // six, and those that no beat had named in time
}

// retried has attempts that fail now and then, and jobs that try again.
func retried(w *world) {
	w.small(2, 5)
	for _, j := range w.order {
		j.flakyPer = []int{50, 300}[w.rng.IntN(2)]
		j.retries = uint32(w.rng.IntN(5))
	}
	w.plague(2*sec, faultKill, faultCut)
}

// halted has jobs that their failures end.
func halted(w *world) {
	w.small(2, 5)
	for _, j := range w.order {
		j.failPer = 100
		j.halt = &protocol.Halt{Failed: uint32(w.between(1, 4)), Now: w.chance(500)}
	}
	w.plague(2*sec, faultKill, faultCut)
}
