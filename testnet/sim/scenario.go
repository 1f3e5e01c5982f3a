package sim

import (
	"fmt"
	"maps"
	"slices"

	"meshnode/tasks"
)

// scenarios build worlds. What is not fixed by the name follows from the seed.
var scenarios = map[string]func(*world){
	// Without faults: each task runs once.
	"calm": func(w *world) {
		w.small(2, 6)
		w.deathsPer = 0
		w.stragglePer = 0
		w.maxRegrants = 1
	},
	"crash": func(w *world) {
		w.small(2, 5)
		w.plague(w.between(600*ms, 3*sec), faultKill, faultMidReady)
		w.plague(4*sec, faultPower)
	},
	// Nodes are in two rooms, and most jobs want to run in one of them; some nodes move while they are away.
	"rooms": func(w *world) {
		w.small(3, 6)
		for i, n := range w.nodes {
			n.room, n.moves = 1+i%2, i > 1
		}
		for _, j := range w.order {
			j.room = w.rng.IntN(3)
			clear(j.notAt) // else there may be nobody
		}
		w.plague(w.between(400*ms, 2*sec), faultKill, faultCut, faultMidReady)
		w.plague(3*sec, faultFreeze, faultSlots)
	},
	"streams": func(w *world) {
		w.small(2, 5)
		w.plague(w.between(200*ms, 1500*ms), faultCut, faultFlap)
		w.plague(2*sec, faultSpike)
	},
	"partition": func(w *world) {
		w.small(2, 5)
		w.plague(w.between(500*ms, 3*sec), faultWall)
		w.plague(3*sec, faultCut, faultSpike)
	},
	// What has ended is forgotten after seconds, and origins are away for longer than that.
	"retention": func(w *world) {
		w.small(2, 4)
		w.blobs()
		w.retention = tasks.Retention{Detached: w.between(2*sec, 6*sec), Attached: w.between(1*sec, 2*sec), Outcomes: w.between(2*sec, 4*sec)}
		w.settleAt = w.between(10*sec, 25*sec)
		w.plague(4*sec, func(w *world) { w.anyNode().crash(w.chance(300), w.between(100*ms, 8*sec)) })
		w.plague(6*sec, func(w *world) { w.anyLink().wall(true, true, w.between(2*sec, 9*sec)) }, faultFreeze)
		w.plague(2*sec, func(w *world) { // a client that slept repeats what it had said
			if j := w.order[w.rng.IntN(len(w.order))]; j.n.p != nil && j.endTold {
				j.submit(j.n.p, 0)
			}
		})
	},
	// Only the origins stand still: nobody else may notice, so each task runs once.
	"pause": func(w *world) {
		if w.chance(500) {
			w.small(2, 5)
		} else {
			w.one(2+w.rng.IntN(3), uint32(w.between(100, 500)), w.between(5*ms, 100*ms)).noSpares = true
			w.settleAt = 8 * sec
			w.maxRegrants = 1
		}
		w.deathsPer, w.stragglePer, w.partial = 0, 0, false
		w.redial = [2]int64{5 * ms, 4 * sec} // the others have hung up, and a network needs time
		for range 3 {
			w.at(w.between(300*ms, w.settleAt-1), func() {
				w.order[w.rng.IntN(len(w.order))].n.stopFor(w.between(1*sec, 12*sec), stopKind(w.between(1, 3)))
			})
		}
	},
	"freeze": func(w *world) {
		w.small(2, 5)
		w.plague(w.between(800*ms, 3*sec), faultFreeze, faultHost, faultSuspend)
		w.plague(3*sec, faultHang)
	},
	// Laptops: their machines sleep, most of them after saying so.
	"sleep": func(w *world) {
		w.small(2, 5)
		w.plague(w.between(800*ms, 3*sec), faultSleep)
		w.plague(w.between(2*sec, 6*sec), faultSuspend)
		if w.chance(500) {
			w.plague(2*sec, faultKill, faultCut, faultSlowSync)
		}
	},
	"disk": func(w *world) {
		w.small(2, 5)
		w.blobs()
		w.plague(w.between(500*ms, 2*sec), faultSlowSync)
		w.plague(2*sec, faultKill, faultEvict, faultMidReady)
	},
	"commit": func(w *world) { // writes and syncs fail
		w.small(2, 5)
		w.blobs()
		w.plague(w.between(500*ms, 2*sec), faultCommit)
		w.plague(2*sec, faultMidReady, faultSlowSync)
	},
	// A worker is lost with its disk: with results whose bytes nobody else has, and with those that nobody has answered.
	"lost": func(w *world) {
		w.small(3, 5)
		w.lowerJobs()
		w.blobs()
		w.plague(w.between(500*ms, 2*sec), func(w *world) { w.nodes[len(w.nodes)-1].wipe(w.between(300*ms, 6*sec)) })
		w.plague(3*sec, faultCut, faultSlowSync)
	},
	// An origin grants and never answers a result: its quota at a worker fills, and others get the slots.
	"mute": func(w *world) {
		for range 3 {
			w.addNode(100, 2)
		}
		w.settleAt = 8 * sec
		w.nodes[0].mute = true
		j := w.jobAt(w.nodes[0], 300, 20*ms, 300*ms)
		j.bigPer, j.blobSize = 1000, 100<<20
		k := w.jobAt(w.nodes[1], 200, 20*ms, 1500*ms)
		k.deadline = 6 * sec
	},
	// The loop of a worker hangs, and its beats go on: they say how long ago its last step was.
	"hung": func(w *world) {
		j := w.one(3, 100, 50*ms)
		j.noSpares = true
		w.patient = true
		w.settleAt = 44 * sec
		j.deadline = 43 * sec
		w.at(w.between(550*ms, 1500*ms), func() { w.nodes[1].p.hang(70 * sec) })
	},
	// A peer says without end that it has work, and grants none: others must not lose their time with it.
	"boaster": func(w *world) {
		j := w.one(4, 400, 20*ms)
		w.settleAt = 10 * sec
		w.nodes[3].boaster = true
		j.deadline = 500*ms + 2300*ms // 2 s with four nodes
		w.maxPerTask = 5
		w.checkEach = 20
	},
	"slow reader": func(w *world) {
		j := w.one(4, 400, 20*ms)
		w.settleAt = 10 * sec
		w.nodes[1+w.rng.IntN(3)].readGap = w.between(10*ms, 60*ms)
		j.deadline = 8 * sec
	},
	// A worker takes tasks and never runs them, and its beats are in order.
	"sleeper": func(w *world) {
		j := w.one(4, uint32(w.between(20, 300)), w.between(5*ms, 50*ms))
		w.settleAt = 40 * sec
		w.nodes[1+w.rng.IntN(3)].sleeper = sleep(w.between(1, 2))
		j.deadline = 39 * sec
	},
	// Lids are closed for less time than what runs there has run, at the origin or at a worker. Nothing runs twice.
	"lid": func(w *world) {
		j := w.one(3, uint32(w.between(4, 12)), 8*sec)
		j.n.slots = w.rng.IntN(2)
		j.noSpares = true
		w.deathsPer, w.stragglePer, w.partial = 0, 0, false
		for i := range 3 {
			w.at(w.between(4*sec, 6*sec)+int64(i)*9*sec, func() { w.nodes[w.rng.IntN(3)].lieDown(w.between(1100*ms, 2500*ms)) })
		}
		w.maxRegrants = 1
	},
	// A worker that said it goes to sleep is not seen again: what it runs has to run elsewhere.
	"lid for good": func(w *world) {
		j := w.one(3, 100, 50*ms)
		j.noSpares = true
		j.deadline = 9 * sec
		w.at(w.between(550*ms, 1500*ms), func() {
			w.nodes[1].held = true
			w.nodes[1].lieDown(28 * sec)
		})
	},
	"rollback": func(w *world) {
		w.small(2, 4)
		w.plague(w.between(800*ms, 4*sec), faultRollBack)
		w.plague(4*sec, faultKill, faultCut)
	},
	"blobs": func(w *world) {
		w.small(2, 4)
		w.blobs()
		w.plague(w.between(50*ms, 400*ms), faultEvict)
		w.plague(w.between(700*ms, 3*sec), faultKill, faultCut, faultWall)
	},
	"reads": func(w *world) { // tasks read blobs
		w.small(2, 4)
		for _, j := range w.order {
			j.reads = true
		}
		w.plague(w.between(50*ms, 400*ms), faultEvict)
		w.plague(w.between(700*ms, 3*sec), faultKill, faultCut, faultWall, faultPause)
	},
	"person": func(w *world) { // what its person does with a node
		w.small(2, 5)
		w.plague(w.between(400*ms, 2*sec), faultSlots, faultPause, faultUnable)
		w.plague(3*sec, faultShutdown, faultSlow)
	},
	// Members are put out of the mesh while work goes on, by one side first or by both, and come back.
	"expelled": func(w *world) {
		w.small(3, 5)
		w.plague(w.between(600*ms, 2*sec), func(w *world) {
			l := w.anyLink()
			first := w.rng.IntN(2)
			for i, n := range []*node{l.n[first], l.n[1-first]} {
				other := l.n[first].id
				if i == 0 {
					other = l.n[1-first].id
				}
				w.after(int64(i)*w.between(0, 300*ms), func() {
					if n.p != nil && !n.p.dead {
						n.p.expelled[other] = true
						n.p.post(tasks.Expelled{Peer: other, Reason: "it was revoked"})
					}
					if l.conn != nil {
						l.conn.cut(cutReset)
					}
				})
			}
		})
	},
	"liar": func(w *world) {
		w.small(3, 5)
		w.lowerJobs()
		w.nodes[len(w.nodes)-1].liar = true
		w.blobs()
		if w.chance(400) {
			w.plague(3*sec, faultKill, faultCut)
		}
	},
	"poison": func(w *world) {
		w.small(2, 4)
		w.deathsPer = 80
		for _, j := range w.order {
			j.poisonPer, j.failPer = 60, 60
			j.retries = uint32(w.rng.IntN(3))
		}
		w.plague(2*sec, faultKill, faultCut)
	},
	// Streams break and are back at once: what runs is adopted, so nothing runs twice.
	"reset": func(w *world) {
		w.small(2, 5)
		w.deathsPer, w.stragglePer = 0, 0
		for _, j := range w.order {
			j.noSpares = true // a copy would end the job of an attempt that is lost for good
		}
		w.redial = [2]int64{5 * ms, 40 * ms}
		for _, l := range w.links {
			l.latency = min(l.latency, 3*ms)
			l.jitter = l.latency / 2
		}
		w.plague(w.between(100*ms, 800*ms), func(w *world) {
			if c := w.anyLink().conn; c != nil {
				c.cut(cutReset)
			}
		})
		w.maxRegrants = 1
	},
	// The origin, which runs nothing itself, dies and comes back: finished and running work is not redone.
	"origin": func(w *world) {
		j := w.one(2+w.rng.IntN(3), uint32(w.between(20, 80)), w.between(5*ms, 200*ms))
		j.n.slots = 0
		j.detached = true
		w.at(800*ms, func() {
			w.plague(2*sec, func(w *world) { j.n.crash(w.chance(300), w.between(20*ms, 1500*ms)) })
		})
		w.maxRegrants = 1
	},
	// A direction goes deaf, and no stream breaks: what the worker cannot have read must run elsewhere.
	"deaf": func(w *world) {
		j := w.one(3, 100, 50*ms)
		j.deadline = 8500 * ms
		j.noSpares = true
		w.patient = true
		w.at(w.between(550*ms, 1500*ms), func() { w.nodes[0].link(w.nodes[1]).wall(true, false, 28*sec) })
	},
	// A worker is gone without a word, and its stream does not break: its lease has to end.
	"silent": func(w *world) {
		j := w.one(3, 100, 50*ms)
		j.deadline = 9 * sec
		j.noSpares = true
		w.patient = true
		w.at(w.between(550*ms, 1500*ms), func() {
			n := w.nodes[1]
			n.held = true
			if w.chance(500) {
				n.crash(true, sec)
			} else {
				n.stopFor(28*sec, stopKind(w.between(1, 3)))
			}
		})
	},
	// A worker with a queue stands still for longer than a lease, and comes back in the middle of the job. Its queue is
	// revoked before it starts any of it: only what ran is run twice.
	"thaw": func(w *world) {
		j := w.one(3, 2500, 5*ms)
		j.bigPer = 0
		for _, l := range w.links {
			l.latency, l.jitter = 20*ms, 5*ms
		}
		w.patient = true
		w.settleAt = 7 * sec
		w.checkEach = 20
		w.at(w.between(1*sec, 2*sec), func() {
			w.nodes[1].stopFor(w.between(3500*ms, 4*sec), stopKind(w.between(1, 3)))
			if w.chance(500) { // and its stream breaks meanwhile: the origin knows at once, it does not
				w.after(1*sec, func() { w.nodes[0].link(w.nodes[1]).conn.cut(cutHalf0) })
			}
		})
		w.maxRegrants, w.extra = 1, 16
	},
	// A worker's machine is reset and is back before its broken stream is noticed.
	"reboot": func(w *world) {
		j := w.one(3, 400, 20*ms)
		for _, l := range w.links {
			l.latency, l.jitter = 20*ms, 5*ms
		}
		w.patient = true
		w.settleAt = 10 * sec
		j.deadline = 7 * sec
		for range 3 {
			w.at(w.between(600*ms, 4*sec), func() { w.nodes[1+w.rng.IntN(2)].crash(true, w.between(100*ms, 900*ms)) })
		}
		j.noSpares = true
		j.detached = w.chance(500)
	},
	// Who gets what; see share.go.
	"jobs share":       jobsShare,
	"submitters share": submittersShare,
	"priorities":       priorities,
	"owner":            owner,
	"far":              far,
	"groups":           groups,
	"group elsewhere":  groupElsewhere,
	// Everything at once.
	"black hole":   blackHole,
	"bad program":  badProgram,
	"life of 60 s": lifeOf60,
	"killer":       killer,
	"retried":      retried,
	"halted":       halted,

	"faults": func(w *world) {
		w.small(2, 6)
		if w.chance(500) {
			w.blobs()
		}
		all := []fault{faultKill, faultPower, faultMidReady, faultCut, faultFlap, faultWall, faultSpike, faultFreeze, faultHost, faultSuspend,
			faultHang, faultSlowSync, faultEvict, faultShutdown, faultSleep, faultSlots, faultPause, faultUnable, faultSlow, faultCommit, faultSlowReader}
		for range 2 + w.rng.IntN(5) {
			w.plague(w.between(600*ms, 4*sec), all[w.rng.IntN(len(all))])
		}
		if len(w.nodes) > 3 && w.chance(200) {
			w.nodes[len(w.nodes)-1].liar = true
			w.lowerJobs()
		}
	},
}

// mixed are the scenarios that a seed chooses from; those with all faults more often.
var mixed = []string{"calm", "crash", "streams", "partition", "pause", "freeze", "disk", "commit", "lost", "mute", "slow reader", "sleeper", "hung", "boaster", "rollback", "blobs", "person", "liar", "sleep", "lid", "lid for good",
	"poison", "retention", "reset", "origin", "deaf", "silent", "thaw", "reboot", "black hole", "bad program", "life of 60 s", "killer", "retried", "halted", "groups", "faults", "faults", "faults", "faults"}

// Mix is the scenario that Run takes for a seed if none is named.
func Mix(seed uint64) string { return mixed[seed%uint64(len(mixed))] }

// find returns what builds a scenario: one of the above or a row of a table; nil: there is none of that name.
func find(name string) func(*world) {
	if build := scenarios[name]; build != nil {
		return build
	}
	for _, t := range tables {
		for _, r := range t.rows {
			if r.name == name {
				return r.build
			}
		}
	}
	return nil
}

// Scenarios lists the names of the scenarios with faults, sorted. Those of Tables are named in their rows.
func Scenarios() []string { return slices.Sorted(maps.Keys(scenarios)) }

// small makes a mesh of lo to hi nodes with a few jobs, several of them origins.
func (w *world) small(lo, hi int) {
	n := int(w.between(int64(lo), int64(hi)))
	for range n {
		n := w.addNode(w.between(50, 200), 1+w.rng.IntN(3))
		n.window = []int{0, 0, 100, 500, 2000}[hash64(w.seed, uint64(n.index), 0x77)%5]
	}
	latency := []int64{100 * us, 300 * us, 3 * ms, 20 * ms}[w.rng.IntN(4)]
	for _, l := range w.links {
		l.latency, l.jitter = latency, latency/2
	}
	w.settleAt = w.between(2*sec, 8*sec)
	w.deathsPer = []int{0, 0, 20}[w.rng.IntN(3)]
	w.stragglePer = []int{0, 0, 20}[w.rng.IntN(3)]
	w.partial = w.chance(500)
	for range 1 + w.rng.IntN(3) {
		mean := []int64{3 * ms, 20 * ms, 100 * ms, 500 * ms}[w.rng.IntN(4)]
		tasks := min(w.between(1, 60), 20*sec/mean)
		j := w.addJob(w.nodes[w.rng.IntN(n)], uint32(tasks), mean)
		j.spread = spread(w.rng.IntN(3))
		j.detached = w.chance(500)
		j.at = w.between(50*ms, w.settleAt/2)
		if w.chance(400) {
			j.chunk, j.gap = uint32(w.between(1, tasks)), w.between(1*ms, 200*ms)
		}
		if w.chance(150) {
			j.parallel = uint32(w.between(1, 4))
		}
		if w.chance(150) {
			j.cancelAt = j.at + w.between(1*ms, 3*sec)
			j.cancelTasks = w.chance(400)
		}
		j.invalid = w.chance(30)
		if w.chance(200) {
			j.failPer = 100
		}
		if w.chance(150) {
			j.notAt[w.rng.IntN(n)] = true
		}
	}
}

func roomLabel(room int) string { return fmt.Sprintf("room=%d", room) }

// one makes a mesh of n nodes and a job of the first.
func (w *world) one(n int, tasks uint32, mean int64) *job {
	for range n {
		w.addNode(100, 1)
	}
	w.settleAt = 30 * sec
	j := w.addJob(w.nodes[0], tasks, mean)
	j.at = 500 * ms
	return j
}

// blobs makes a part of the results large.
func (w *world) blobs() {
	for _, j := range w.order {
		j.bigPer = []int{200, 1000}[w.rng.IntN(2)]
	}
}

// lowerJobs keeps the last node free of jobs.
func (w *world) lowerJobs() {
	for _, j := range w.order {
		if j.n.index == len(w.nodes)-1 {
			j.n = w.nodes[0]
		}
	}
}
