package sim

import (
	"container/heap"
	"slices"

	"meshnode/protocol"
)

// meter measures what a world makes of its machines. Nothing that it knows comes from a scheduler.
type meter struct {
	at      int64
	slots   int64 // of processes that live
	speed   int64 // of those slots, in percent, together
	busy    int64 // slots that run a task
	waiting int64 // submitted tasks that run nowhere and have not ended

	idle       int64 // slot-ns: slots without a task while there was one for them
	living     int64 // percent-ns of slots since the first submission,
	livedAtEnd int64 // and what it was at the end of the last job

	sent0, sent1 int // messages, at the first submission and at the end of the last job
	lost         map[protocol.TaskID]int64
	detected     []int64 // from the loss of a running attempt to the next grant of its task
}

// pass accounts for the time since the last change.
func (w *world) pass() {
	m := &w.meter
	d := w.now - m.at
	m.at = w.now
	if d == 0 || w.firstSubmit == 0 {
		return
	}
	m.idle += d * max(0, min(m.slots-m.busy, m.waiting))
	m.living += d * m.speed
}

// count changes the slots of a node's process from and to what it has.
func (w *world) count(n *node, from, to int) {
	w.pass()
	w.slots += int64(to - from)
	w.speed += int64(to-from) * n.speed
}

// runs is what the meter knows of a task.
type runs struct {
	now    uint8 // attempts that run
	starts uint8 // so far; stops at its maximum
	ended  bool  // an attempt ran to its end
}

// offered counts tasks that the client handed over for the first time.
func (j *job) offered(upTo uint32) {
	j.w.pass()
	for uint32(len(j.runs)) < upTo {
		j.runs = append(j.runs, runs{})
		j.w.waiting++
	}
}

// begins counts an attempt that starts to run.
func (j *job) begins(a protocol.Attempt) {
	w := j.w
	w.pass()
	w.busy++
	w.executed++
	r := &j.runs[a.Index]
	if r.now == 0 && !r.ended && !j.closed {
		w.waiting--
	}
	j.slotTime()
	j.atOnce++
	r.now++
	r.starts += min(1, 255-r.starts)
	if j.firstRun == 0 {
		j.firstRun = w.now
	}
}

// endsRun counts an attempt that stops running, well (it has an outcome) or not.
func (j *job) endsRun(a protocol.Attempt, well bool) {
	w := j.w
	w.pass()
	w.busy--
	r := &j.runs[a.Index]
	j.slotTime()
	j.atOnce--
	r.now--
	if well {
		r.ended = true
	}
	if r.now == 0 && !r.ended && !j.closed {
		w.waiting++
	}
}

// closes takes a job whose end was told out of what waits.
func (j *job) closes() {
	if j.closed {
		return
	}
	w := j.w
	w.pass()
	j.closed, j.endAt = true, w.now
	for _, r := range j.runs {
		if r.now == 0 && !r.ended {
			w.waiting--
		}
	}
	w.sent1, w.livedAtEnd = w.messages, w.living
}

// losing is called before a process ends: what it runs is lost.
func (n *node) losing(p *process) {
	n.w.count(n, p.hasSlots, 0)
	for _, s := range p.slot {
		if s.running && len(s.items) > 0 {
			a := s.items[0].Attempt
			n.w.jobs[a.Job].endsRun(a, false)
		}
	}
	n.silent(p)
}

// silent notes the moment from which a worker's running attempts of other origins are lost; heard takes that back.
func (n *node) silent(p *process) {
	for _, s := range p.slot {
		if s.running && len(s.items) > 0 && s.origin != n.id {
			n.w.lost[s.items[0].Attempt.Task()] = n.w.now
		}
	}
}

func (n *node) heard(p *process) {
	for _, s := range p.slot {
		if s.running && len(s.items) > 0 {
			delete(n.w.lost, s.items[0].Attempt.Task())
		}
	}
}

// found notes that a task is granted: if its last attempt was lost, its origin knows.
func (w *world) found(t protocol.TaskID) {
	if at, ok := w.lost[t]; ok {
		delete(w.lost, t)
		w.detected = append(w.detected, w.now-at)
	}
}

// A bound is a makespan that no scheduler can beat, or that of one without any latency, from the first submission on.
// Efficiency is bound / makespan.
type bound byte

const (
	// boundWork: all work at the speed of all slots together, and no less than the longest task at the fastest node.
	boundWork bound = iota
	// boundWhole is the best schedule of whole tasks of one length: the least time T in which the slots, each
	// rounded down, finish as many tasks as there are: Σ ⌊T·speed/d⌋ ≥ n. No scheduler can beat it.
	boundWhole
	// boundGreedy is a scheduler without latency that knows no run times: a free slot takes the next task at once, the
	// fastest first.
	boundGreedy
	// boundAlive is the work over what the slots of living processes could have done until the last job's end: a node that is
	// down counts for nothing, work that died with it counts as done once.
	boundAlive
)

func (b bound) String() string { return [...]string{"work", "whole", "greedy", "alive"}[b] }

// lowerBound is the bound of the world's kind, ns.
func (w *world) lowerBound() int64 {
	var total, longest, fastest, capacity int64
	var all []int64 // run times at speed 100, in the order of submission
	for _, j := range w.order {
		for i := range j.tasks {
			d := j.work(i)
			if j.slowDraw(i, 1) {
				d *= slowBy
			}
			all = append(all, d)
			total += d
			longest = max(longest, d)
		}
	}
	var speeds []int64 // of slots
	for _, n := range w.nodes {
		for range n.slots {
			speeds = append(speeds, n.speed)
		}
		capacity += int64(n.slots) * n.speed
		fastest = max(fastest, n.speed)
	}
	if len(all) == 0 || capacity == 0 {
		return 0
	}
	switch w.kind {
	case boundWhole:
		return wholeTasks(len(all), longest, speeds)
	case boundGreedy:
		return greedy(all, speeds)
	case boundAlive:
		return int64(float64(w.lastEnd-w.firstSubmit) * float64(total) * 100 / float64(max(1, w.livedAtEnd)))
	}
	return max(total*100/capacity, longest*100/fastest)
}

// wholeTasks is the least time in which slots of those speeds end n tasks of length d (at speed 100).
func wholeTasks(n int, d int64, speeds []int64) int64 {
	lo, hi := int64(0), int64(n)*d*100/slices.Max(speeds)+1
	for lo+1 < hi {
		mid := (lo + hi) / 2
		done := int64(0)
		for _, s := range speeds {
			done += mid / (d * 100 / s)
		}
		if done >= int64(n) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi
}

// greedy is the makespan if each slot takes the next task the moment it is free.
func greedy(tasks []int64, speeds []int64) int64 {
	h := freeSlots{}
	for _, s := range speeds {
		h = append(h, freeSlot{0, s})
	}
	heap.Init(&h)
	end := int64(0)
	for _, d := range tasks {
		h[0].at += d * 100 / h[0].speed
		end = max(end, h[0].at)
		heap.Fix(&h, 0)
	}
	return end
}

type freeSlot struct{ at, speed int64 }

type freeSlots []freeSlot

func (h freeSlots) Len() int { return len(h) }
func (h freeSlots) Less(a, b int) bool {
	return h[a].at < h[b].at || h[a].at == h[b].at && h[a].speed > h[b].speed
}
func (h freeSlots) Swap(a, b int) { h[a], h[b] = h[b], h[a] }
func (h *freeSlots) Push(x any)   { *h = append(*h, x.(freeSlot)) }
func (h *freeSlots) Pop() any     { panic("never shrinks") }

// alone is how long j would take on an idle mesh without latency.
func (j *job) alone() int64 {
	var total, longest, fastest, capacity int64
	for i := range j.tasks {
		d := j.work(i)
		total += d
		longest = max(longest, d)
	}
	for _, n := range j.w.nodes {
		capacity += int64(n.slots) * n.speed
		fastest = max(fastest, n.speed)
	}
	return max(total*100/max(capacity, 1), longest*100/max(fastest, 1), 1)
}
