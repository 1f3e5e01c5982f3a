package tasks

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"meshnode/protocol"
)

// How a worker asks for tasks: only when it has too few, and for as many as keep it busy while the next request
// is on its way. r is the smoothed time from request to grant, d the mean run time here.
const (
	// lateFactor: up to r = d/200 a prefetch gains less than half a percent, and only takes tasks from others.
	lateFactor = 200
	// lead is kept queued besides 2.5 r + d: time for the node's own work.
	lead = 2 * millisecond
	// growth bounds a request by the last grant: a wrong estimate of d must not take everything at once.
	growth = 16
	// askFirst and askMost bound the pause after an origin had nothing.
	askFirst, askMost = millisecond, 50 * millisecond
	// askTimeout gives a request or recall up that was never answered; leases end on their own.
	askTimeout = 3 * second
)

// low and high are between how many tasks of p this node should hold, for so many slots together.
func (s *Scheduler) low(p *peer, ofSlots int) (low, high int) {
	r, d, slots := p.waited.ns, p.run.ns, int64(ofSlots)
	least := slots
	if d > 0 && d <= aheadUpTo {
		least = 2 * slots // one runs, and one is there when it ends
	}
	if d == 0 || r*lateFactor <= d && d >= singleFrom {
		return int(least), int(least)
	}
	l := (slots*(r*5/2+d+lead) + d - 1) / d // rounded up: one that runs and nothing behind it is no prefetch
	l = max(least, min(l, maxHeld/2))
	return int(l), int(2 * l)
}

// askForTasks sends a StealRequest to each origin that has tasks while there is room for them here.
func (s *Scheduler) askForTasks() {
	if s.refuses() != "" || s.lone != nil { // what came would stand behind the lone one
		return
	}
	var sources []*peer
	own := s.ownWaits()
	for _, p := range s.line {
		if p.up && p.pending > 0 && (p.self || !own) {
			sources = append(sources, p)
		}
	}
	// Who had least slot time asks first; the size of a backlog only breaks ties.
	slices.SortStableFunc(sources, func(a, b *peer) int {
		return cmp.Or(s.guests.compare(a.claim, b.claim), -cmp.Compare(a.pending, b.pending))
	})
	free := s.wanted - s.atWork() + s.sparesHere()
	for _, p := range s.peers { // what was just asked for is on its way
		if p.asking != 0 && s.now < p.answerDue() {
			free -= p.wanted
		}
	}
	soon := s.slotSoon()
	for _, p := range sources {
		if p.full() || !p.self && (p.inputBytes > maxInputs || p.needs.bytes > maxNeeds) {
			continue
		}
		if p.asking != 0 && s.now < p.askedAt+askTimeout || s.now < p.askFrom {
			continue
		}
		low, high := s.low(p, s.wanted)
		have := p.queuedHere + p.runningHere
		ahead := low < high                     // its queue covers the way there and back
		if n := len(sources); n > 1 && !ahead { // each origin has its share of the slots
			low, high = (low+n-1)/n, (high+n-1)/n
		}
		want := 0
		switch {
		case have < low && (ahead || free > 0 || soon):
			want = high - have
		case free > 0:
			want = free
		default:
			continue
		}
		want = min(want, max(growth*p.lastGrant, s.wanted), maxHeld-have)
		if want <= 0 {
			continue
		}
		p.asks++
		p.asking, p.askedAt, p.wanted = p.asks, s.now, want
		p.ask = &protocol.StealRequest{
			Epoch: p.epoch, Id: p.asks, Want: uint32(want), Free: uint32(max(0, free)), WaitUs: p.waited.us(),
			TimeUs: uint64(want) * p.run.us(),
		}
		free -= want
	}
}

// answerDue is until when a request counts as on its way. Later others are asked for what it was to bring.
func (p *peer) answerDue() int64 { return p.askedAt + 4*p.waited.ns + 10*millisecond }

// soonTime is how long a task that needs no queue waits for its turn at most, beside tasks of others: it would be
// better off where it came from.
const soonTime = 100 * millisecond

// slotSoon says that one of the slots is free soon, by what its tasks take.
func (s *Scheduler) slotSoon() bool {
	return slices.ContainsFunc(s.slots, func(sl slot) bool { return sl.busy && sl.job.run.ns > 0 && sl.job.run.ns <= soonTime })
}

// load learns that an origin has tasks.
func (s *Scheduler) load(p *peer, m *protocol.Load) {
	if p.stale(m.Epoch) {
		return
	}
	p.pending = m.Pending
	p.askFrom, p.askPause = 0, 0
}

// noteAnswer learns from the Grant that answers a request how long it took and whether the origin is empty. An
// origin that grants nothing counts as empty until its next Load.
func (s *Scheduler) noteAnswer(p *peer, m *protocol.Grant) {
	n := 0
	for _, j := range m.Jobs {
		n += len(j.Tasks)
	}
	if m.Request == 0 || m.Request != p.asking {
		return
	}
	p.asking = 0
	p.waited.add(s.now - p.askedAt)
	if n == 0 {
		p.pending = 0
		p.askPause = min(max(askFirst, 2*p.askPause), askMost)
		p.askFrom = s.now + p.askPause
		return
	}
	p.lastGrant, p.askPause, p.askFrom = n, 0, 0
}

// recalled gives back up to m.Count tasks that were not started: the last ones, which would wait longest.
func (s *Scheduler) recalled(p *peer, m *protocol.Recall) {
	if p.stale(m.Epoch) {
		return
	}
	var as []protocol.Attempt
	last := slices.Clone(p.jobTurn)
	for _, id := range slices.SortedFunc(maps.Keys(p.jobs), protocol.JobID.Compare) {
		if j := p.jobs[id]; len(j.queue) == 0 && len(j.waits) > 0 {
			last = append(last, j)
		}
	}
	slices.SortStableFunc(last, func(a, b *heldJob) int { return p.compareJobs(b, a) })
	for _, j := range last {
		if len(m.Job) > 0 && !bytes.Equal(m.Job, j.id[:]) {
			continue
		}
		for len(j.queue)+len(j.waits) > 0 && len(as) < int(m.Count) {
			list := j.waits
			if len(list) == 0 {
				list = j.queue
			}
			h := list[len(list)-1]
			p.dequeue(h)
			s.drop(p, h)
			as = append(as, h.attempt)
		}
	}
	s.send(p, &protocol.GiveBack{Epoch: p.epoch, Recall: m.Id, Attempts: protocol.GroupAttempts(as)})
}
