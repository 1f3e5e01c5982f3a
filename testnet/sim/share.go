package sim

// Scenarios of who gets what: several jobs or submitters at once, without faults. Only workers have slots, so that what is
// seen is how slots are shared, and not that a machine's own tasks come first; that is "owner".

// share is a mesh of workers with slots each, and origins without.
func (w *world) share(origins, workers, slots int) (from []*node) {
	for range origins {
		from = append(from, w.addNode(100, 0))
	}
	for range workers {
		w.addNode(100, slots)
	}
	rtt := []int64{300 * us, 5 * ms, 40 * ms}[w.rng.IntN(3)]
	for _, l := range w.links {
		l.latency, l.jitter = rtt/2, rtt/20
	}
	w.settleAt = 8 * sec // until then the origins have no slots
	w.checkEach = 200
	w.maxRegrants = 1.05
	return from
}

// fair fails if jobs that have enough to do get slot time between two moments of which one has factor times another's.
func (w *world) fair(from, to int64, factor float64, jobs ...*job) {
	had := map[*job]int64{}
	w.at(from, func() {
		for _, j := range jobs {
			had[j] = j.slotTime()
		}
	})
	w.at(to, func() {
		for _, a := range jobs {
			for _, b := range jobs {
				ta, tb := a.slotTime()-had[a], b.slotTime()-had[b]
				if float64(ta) > factor*float64(tb) {
					w.fail("budget: from %.1f to %.1f s %s had %.3f s of the slots, and %s %.3f s", float64(from)/1e9, float64(to)/1e9,
						a.id.Short(), float64(ta)/1e9, b.id.Short(), float64(tb)/1e9)
					return
				}
			}
		}
	})
}

// soon fails if the first task of a job does not run within d of its submission.
func (j *job) soon(d int64) {
	j.w.at(j.at+d, func() {
		if j.firstRun == 0 {
			j.w.fail("budget: no task of %s runs %.1f s after it was submitted", j.id.Short(), float64(d)/1e9)
		}
	})
}

// slotTime is what the job's attempts had of slots so far, ns.
func (j *job) slotTime() int64 {
	j.spent += (j.w.now - j.spentAt) * int64(j.atOnce)
	j.spentAt = j.w.now
	return j.spent
}

// jobsShare: jobs of one origin, of short and of long tasks, and one of ten tasks that comes late.
func jobsShare(w *world) {
	o := w.share(1, 3, 1+w.rng.IntN(2))[0]
	short := w.jobAt(o, 8000, 2*ms, 500*ms)
	long := w.jobAt(o, 500, w.between(30*ms, 60*ms), 500*ms)
	late := w.jobAt(o, 10, 20*ms, 4*sec)
	late.soon(1 * sec)
	late.deadline = 6 * sec
	w.fair(1500*ms, 4*sec, 1.3, short, long)
}

// submittersShare: the same between origins. The second of them comes late, and both have the same then.
func submittersShare(w *world) {
	from := w.share(3, 3, 1+w.rng.IntN(2))
	first, second := w.jobAt(from[0], 12000, 3*ms, 500*ms), w.jobAt(from[1], 400, w.between(50*ms, 90*ms), 3*sec)
	if w.chance(500) { // whose tasks are long is there first
		first.at, second.at = second.at, first.at
	}
	late := w.jobAt(from[2], 10, 20*ms, 5*sec)
	late.soon(1 * sec)
	late.deadline = 7 * sec
	w.fair(3200*ms, 5*sec, 1.4, first, second)
}

// priorities: of one origin's jobs the one of high priority has all, the one of low priority nothing, while others wait.
func priorities(w *world) {
	o := w.share(1, 3, 1)[0]
	for range 4 {
		w.jobAt(o, 600, 10*ms, 500*ms)
	}
	low := w.jobAt(o, 100, 10*ms, 500*ms)
	low.priority = -1
	high := w.jobAt(o, 300, 10*ms, 3*sec)
	high.priority = 7
	high.deadline = high.at + 1500*ms
	w.at(5*sec, func() {
		if had := low.slotTime(); had > 100*ms {
			w.fail("budget: the job of low priority had %.3f s of the slots", float64(had)/1e9)
		}
	})
}

// owner: a machine whose slots have long tasks of somebody else runs its own at once.
func owner(w *world) {
	o := w.share(1, 3, 1+w.rng.IntN(2))[0]
	w.jobAt(o, 30, 3*sec, 500*ms)
	own := w.jobAt(w.nodes[1], 4, 50*ms, 2*sec)
	own.soon(300 * ms)
	own.deadline = 2800 * ms
	w.jobAt(w.nodes[2], 100, 100*ms, 4*sec).soon(300 * ms)
}

// far: the bytes of programs need long to one of the machines, which then is no thief of tasks that the others would have ended.
func far(w *world) {
	o := w.addNode(100, 1)
	for range 3 {
		w.addNode(100, 1)
	}
	for _, l := range w.links {
		l.latency, l.jitter = w.between(5*ms, 20*ms), ms
	}
	away := w.nodes[1+w.rng.IntN(3)]
	away.link(o).perMiB = 500 * ms
	w.settleAt = 12 * sec
	first := w.jobAt(o, 200, 20*ms, 500*ms) // its program shows how slow it is
	first.code = 8 << 20
	second := w.jobAt(o, 100, 20*ms, 8*sec)
	second.code = 40 << 20 // 20 s
	second.noSpares = true
	second.deadline = second.at + 1500*ms
}
