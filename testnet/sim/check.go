package sim

import (
	"bytes"
	"fmt"
	"slices"

	"meshnode/protocol"
	"meshnode/tasks"
)

// What must hold after each output of each node. Scheduler.Check looks at one node's books; these look at
// what comes out of them, and know what really happened. The numbers are those of the invariants:
//
//	I1  an accepted task has at most one terminal record, and exactly one once faults stop    book.add, finished
//	I3  no result after a recorded cancel                                                     book.add
//	I4  attempts of a task only rise, across crashes too; an epoch is synced before it is used checkOutgoing, checkEpoch
//	I5  nothing is told as durable that a crash could lose                                    checkNotice, checkKept
//	I6  a worker drops an outcome only after its origin's answer, or long after it went away  checkRecord
//	    (or because the origin is no member any more)
//	I7  pending + leased + terminal = accepted                                                Scheduler.Check, book.add
//	I9  what a stale or foreign message asks for changes nothing                              checkStart, checkRecord
//	I10 after faults stop every job ends and no worker holds anything unanswered              finished
//	I12 of who is no member any more nothing is held                                          step
//
// And: a result is the right one, its bytes are on the origin's disk and pinned; what never killed a worker process never
// fails; the lease of a healthy worker is never taken back; what was given back or revoked is not started.

type ranKey struct {
	n      *node
	origin protocol.NodeID
	a      protocol.Attempt
}

// history is what was granted of one task.
type history struct {
	last protocol.Attempt // granted to another node
	to   map[protocol.Attempt]grantInfo
}

// everKey is a grant to a process: that it never repeats is all that a restored backup leaves of I4.
type everKey struct {
	to     *process
	origin protocol.NodeID
	a      protocol.Attempt
}

// logged is a grant, in the order in which they left.
type logged struct {
	a        protocol.Attempt
	from, to *node
}

type grantInfo struct {
	n       *node
	at      int64
	by      *process
	session uint64
}

func (w *world) history(t protocol.TaskID) *history {
	h := w.grants[t]
	if h == nil {
		h = &history{to: map[protocol.Attempt]grantInfo{}}
		w.grants[t] = h
	}
	return h
}

// own says whether job belongs to the node id.
func (w *world) own(id protocol.NodeID, job protocol.JobID) bool {
	j := w.jobs[job]
	return j != nil && j.n.id == id
}

// heed remembers what a message allows the worker that reads it, or forbids.
func (p *process) heed(r tasks.Receive) {
	w := p.n.w
	if p.current[r.Peer] != r.Session {
		return // of an old stream: it must have no effect
	}
	switch m := r.Message.(type) {
	case *protocol.ResultAnswer:
		for _, gs := range [][]*protocol.Attempts{m.Accepted, m.Superseded, m.Unknown} {
			for _, a := range protocol.UngroupAttempts(gs) {
				p.answered[heldKey{r.Peer, a}] = true
			}
		}
	case *protocol.Revoke:
		for _, a := range protocol.UngroupAttempts(m.Attempts) {
			p.answered[heldKey{r.Peer, a}] = true
			if w.own(r.Peer, a.Job) && m.Epoch >= p.seenNow[r.Peer] {
				p.revoked[a] = true
			}
		}
	case *protocol.Cancel:
		if id, err := protocol.JobIDFrom(m.Job); err == nil && w.own(r.Peer, id) {
			p.gone[id] = true
		}
	case *protocol.JobInfo:
		if id, err := protocol.JobIDFrom(m.Job); err == nil && w.own(r.Peer, id) {
			delete(p.gone, id)
		}
	}
	if g, ok := r.Message.(*protocol.Grant); ok {
		for _, j := range g.Jobs {
			for _, t := range j.Tasks {
				k := heldKey{r.Peer, protocol.Attempt{Job: protocol.JobID(j.Job), Index: t.Index, N: t.N, Epoch: g.Epoch}}
				if _, before := p.stale[k]; !before {
					p.stale[k] = g.Epoch < p.seenNow[r.Peer]
				}
			}
		}
	}
	if e, ok := senderEpoch(r.Message); ok {
		p.seenNow[r.Peer] = max(p.seenNow[r.Peer], e)
	}
}

// senderEpoch is the epoch of the origin that sends m.
func senderEpoch(m protocol.Message) (uint64, bool) {
	switch m := m.(type) {
	case *protocol.Hello:
		return m.Epoch, true
	case *protocol.Beat:
		return m.Epoch, true
	case *protocol.Load:
		return m.Epoch, true
	case *protocol.JobInfo:
		return m.Epoch, true
	case *protocol.Grant:
		return m.Epoch, true
	case *protocol.Recall:
		return m.Epoch, true
	case *protocol.Revoke:
		return m.Epoch, true
	case *protocol.Cancel:
		return m.Epoch, true
	}
	return 0, false
}

func (p *process) checkEpoch(m protocol.Message) {
	e, ok := senderEpoch(m)
	switch m.(type) {
	case *protocol.Hello, *protocol.Beat:
		return // they fence nothing: who has seen their epoch says of which incarnation it was
	}
	if !ok {
		return
	}
	for _, k := range p.n.disk.book.epoch {
		if k.epoch >= e && k.batch < p.n.disk.synced {
			return
		}
	}
	p.n.w.fail("I4: %v sends %T in epoch %d, which is not synced", p.n, m, e)
}

// mostUnasked tasks may be granted for each slot of a peer that has not asked: a few, if nobody knows how long they take.
const mostUnasked = 4

// checkOutgoing looks at a message as it leaves the scheduler.
func (p *process) checkOutgoing(x tasks.Outgoing, stops []tasks.Stop) {
	n, w := p.n, p.n.w
	to := w.byID[x.Peer]
	if to == nil || to == n {
		w.fail("%v sends %T to %s", n, x.Message, x.Peer)
		return
	}
	switch m := x.Message.(type) {
	case *protocol.Grant:
		if m.Request == 0 {
			unasked := 0
			for _, g := range m.Jobs {
				unasked += len(g.Tasks)
			}
			if unasked > mostUnasked*to.mostSlots && !to.liar {
				w.fail("%v grants %d tasks unasked to %v, which has %d slots", n, unasked, to, to.mostSlots)
			}
		}
		for _, g := range m.Jobs {
			id, _ := protocol.JobIDFrom(g.Job)
			if !w.own(n.id, id) {
				w.fail("%v grants tasks of %s, which is not its job", n, id.Short())
				return
			}
			b := n.disk.book.jobs[id]
			if b != nil && g.RunUs > 0 && n.rollbacks == 0 && (g.RunUs+1 < b.runs[0] || g.RunUs > b.runs[1]+1) {
				w.fail("%v says that tasks of %s take %d µs; those that ended well took %d to %d", n, id.Short(), g.RunUs, b.runs[0], b.runs[1])
			}
			for _, t := range g.Tasks {
				a := protocol.Attempt{Job: id, Index: t.Index, N: t.N, Epoch: m.Epoch}
				w.granted++
				w.found(a.Task())
				h := w.history(a.Task())
				if old, again := h.to[a]; again {
					w.fail("I4: %v grants %v to %v, which it granted to %v", n, a, to, old.n)
					return
				}
				if h.last.Epoch > a.Epoch || h.last.Epoch == a.Epoch && h.last.N >= a.N {
					w.fail("I4: %v grants %v after %v", n, a, h.last)
					return
				}
				if k := (everKey{to.p, n.id, a}); w.ever[k] {
					w.fail("I4: %v grants %v to %v, which had it already", n, a, to)
					return
				} else {
					w.ever[k] = true
				}
				h.last = a
				h.to[a] = grantInfo{to, w.now, p, x.Session}
				w.log = append(w.log, logged{a, n, to})
				if b == nil || b.tasks <= t.Index {
					w.fail("%v grants %v, which is not accepted", n, a)
					return
				}
				// What ended in this very Ready is on the disk already, and its revoke or cancel follows.
				before := len(n.disk.batches) - 1
				if h := w.jobs[id].halt; h != nil && b.bad(before) >= h.Failed {
					w.fail("%v grants %v, whose job is halted", n, a)
					return
				}
				if d, done := b.done[t.Index]; done && d.batch < before || b.cancelled && b.cancelAt < before {
					w.fail("%v grants %v, whose task has ended", n, a)
					return
				}
			}
		}
	case *protocol.GiveBack:
		for _, a := range protocol.UngroupAttempts(m.Attempts) {
			p.gave[heldKey{x.Peer, a}] = true
			if p.runs(x.Peer, a) && !slices.ContainsFunc(stops, func(s tasks.Stop) bool { return slices.Contains(s.Attempts, a) }) {
				w.fail("%v gives back %v, which runs", n, a)
				return
			}
		}
	case *protocol.Revoke:
		for _, a := range protocol.UngroupAttempts(m.Attempts) {
			p.checkRevoke(x, to, a)
		}
	}
}

// checkAnswers fails if a worker is told to drop a result that the disk could still lose.
func (p *process) checkAnswers(m *protocol.ResultAnswer) {
	n := p.n
	for _, a := range protocol.UngroupAttempts(m.Accepted) {
		b := n.disk.book.jobs[a.Job]
		if b == nil {
			continue
		}
		if d, done := b.done[a.Index]; done && d.attempt == a && d.batch >= n.disk.synced {
			n.w.fail("I5: %v answers the result of %v, which is not synced", n, a)
		}
	}
}

func (p *process) runs(origin protocol.NodeID, a protocol.Attempt) bool {
	for _, s := range p.slot {
		if s.origin == origin && s.running && len(s.items) > 0 && s.items[0].Attempt == a {
			return true
		}
	}
	return false
}

// checkRevoke fails if an attempt is taken back from a worker to which nothing happened since the grant.
func (p *process) checkRevoke(x tasks.Outgoing, to *node, a protocol.Attempt) {
	n, w := p.n, p.n.w
	g, ok := w.history(a.Task()).to[a]
	b := n.disk.book.jobs[a.Job]
	if !ok || g.n != to || b == nil || b.ended() || n.rollbacks > 0 {
		return
	}
	if _, done := b.done[a.Index]; done {
		return
	}
	for c, o := range w.history(a.Task()).to {
		if c != a && o.at < g.at {
			return // it may be a spare copy
		}
	}
	if e := p.ends[x.Session]; e != nil && !e.conn.dead && g.session == x.Session && p.healthy(g) && !to.p.gave[heldKey{n.id, a}] {
		w.fail("%v takes %v back from %v, to which nothing happened since it was granted", n, a, to)
	}
}

// healthy says that nothing happened to a worker, nor between it and us, since we granted it something.
func (p *process) healthy(g grantInfo) bool {
	n, to := p.n, g.n
	l := n.link(to)
	return g.by == p && l != nil && to.p != nil && !to.stands() && to.disturbed < g.at &&
		l.blocked == [2]bool{} && l.wallEnd < g.at && l.spikeTo < g.at && !to.liar && !n.liar
}

// checkStart looks at what is to run.
func (p *process) checkStart(x tasks.Start) {
	n, w := p.n, p.n.w
	busy, own := len(p.slot), 0
	for _, s := range p.slot {
		if s.origin == n.id {
			own++
		}
	}
	if p.slot[x.Slot] == nil { // else it gets more
		busy++
		own++
	}
	if x.Origin != n.id && busy > p.hasSlots {
		w.fail("%v starts slot %d for %v with %d of %d slots busy", n, x.Slot, w.byID[x.Origin], len(p.slot), p.hasSlots)
	}
	if x.Origin == n.id && own > p.hasSlots {
		w.fail("%v starts slot %d for itself, which has %d of %d", n, x.Slot, own, p.hasSlots)
	}
	if !p.prepared[programKey{x.Origin, x.Job}] {
		w.fail("%v starts tasks of %s, whose program is not prepared", n, x.Job.Short())
	}
	p.checkGroup(x)
	if len(x.Items) == 0 {
		w.fail("%v starts nothing in slot %d", n, x.Slot)
	}
	if j := w.jobs[x.Job]; j != nil && j.room > 0 && j.room != n.room && j.n.id == x.Origin {
		w.fail("%v, in room %d, starts tasks of %s, which wants to run in room %d", n, n.room, x.Job.Short(), j.room)
	}
	for _, it := range x.Items {
		a := it.Attempt
		j := w.jobs[a.Job]
		if p.stale[heldKey{x.Origin, a}] {
			w.fail("I9: %v starts %v, granted in a stale epoch", n, a)
		}
		switch h := w.history(a.Task()); {
		case j != nil && a.Job == x.Job && w.byID[x.Origin].liar && j.n.id != x.Origin:
			// A liar may give its job any name; what comes of it goes to the liar.
		case j == nil || a.Job != x.Job || j.n.id != x.Origin:
			w.fail("I9: %v starts %v for %v, whose job it is not", n, a, w.byID[x.Origin])
		case !j.isInput(&it.Input, a.Index):
			w.fail("%v starts %v with the wrong input %x, or reads %v", n, a, it.Input.Data, readBy(&it.Input))
		case x.Origin == n.id:
			w.found(a.Task())
			if old, ok := h.to[a]; ok && old.n != n {
				w.fail("I4: %v starts %v, which it granted to %v", n, a, old.n)
			} else if !ok {
				w.granted++
			}
			h.to[a] = grantInfo{n: n, at: w.now}
		case j.n.rollbacks == 0 && h.to[a].n != n:
			w.fail("I9: %v starts %v, which was never granted to it", n, a)
		case p.revoked[a] && j.n.rollbacks == 0:
			w.fail("%v starts %v, which was revoked", n, a)
		case p.gone[a.Job]:
			w.fail("%v starts %v, whose job was cancelled", n, a)
		}
		if p.gave[heldKey{x.Origin, a}] && j.n.rollbacks == 0 && !w.byID[x.Origin].liar {
			w.fail("%v starts %v, which it gave back", n, a)
		}
	}
}

// checkRun is called when an item really runs.
func (p *process) checkRun(origin protocol.NodeID, a protocol.Attempt) {
	w := p.n.w
	k := ranKey{p.n, origin, a}
	if w.ran[k] && w.jobs[a.Job].n.rollbacks == 0 && !w.byID[origin].liar {
		w.fail("%v runs %v twice", p.n, a)
	}
	w.ran[k] = true
}

// checkRecord looks at a record before it is entered.
func (n *node) checkRecord(rec tasks.Record) {
	w := n.w
	switch r := rec.(type) {
	case tasks.JobRecord:
		if id, err := protocol.JobIDFrom(r.Spec.GetJob()); err != nil || !w.own(n.id, id) {
			w.fail("%v opens a job that its clients did not submit", n)
		}
	case tasks.CancelRecord:
		if j := w.jobs[r.Job]; j != nil && !r.Halted && !j.cancelAsked {
			w.fail("%v cancels %s (%s), and nobody asked for it", n, r.Job.Short(), r.Reason)
		}
		if b := n.disk.book.jobs[r.Job]; r.Halted && b != nil && (w.jobs[r.Job].halt == nil || b.bad(len(n.disk.batches)) < w.jobs[r.Job].halt.Failed) {
			w.fail("%v halts %s, of which %d tasks failed", n, r.Job.Short(), b.bad(len(n.disk.batches)))
		}
	case tasks.DoneRecord:
		n.checkDone(r)
	case tasks.EndedRecord:
		n.endedAt[r.Job] = n.stepped // it is written a little later
	case tasks.ForgetRecord:
		keep := w.retention.Attached
		if w.jobs[r.Job].detached {
			keep = w.retention.Detached
		}
		if at, ok := n.endedAt[r.Job]; !ok || keep == 0 || n.clock() < at+keep {
			w.fail("%v forgets %s too early", n, r.Job.Short())
		}
	case tasks.ReusableRecord:
		if keep := w.retention.Outcomes; keep == 0 || n.clock() < n.endedAt[r.Job]+keep {
			w.fail("%v frees the id of %s too early", n, r.Job.Short())
		}
	case tasks.AwayRecord:
		if r.Since >= 0 {
			n.awayAt[awayKey{r.Origin, r.Since}] = n.stepped
		}
	case tasks.AnsweredRecord:
		if since, away := n.disk.book.away[r.Origin]; away && w.retention.Outcomes > 0 && n.clock() >= n.awayAt[awayKey{r.Origin, since}]+w.retention.Outcomes {
			return // its origin did not come back in time
		}
		if n.p != nil && n.p.expelled[r.Origin] {
			return // it was no member any more
		}
		if n.p != nil && !n.p.answered[heldKey{r.Origin, r.Attempt}] && !n.p.gone[r.Attempt.Job] {
			w.fail("I6: %v drops its outcome of %v, which %v did not answer", n, r.Attempt, w.byID[r.Origin])
		}
	case tasks.HeldRecord:
		n.checkKept(r)
		if !w.own(r.Origin, protocol.JobID(r.Outcome.Job)) && !w.byID[r.Origin].liar {
			w.fail("I9: %v keeps an outcome for %v, whose job it is not", n, w.byID[r.Origin])
		}
	}
}

// checkKept fails if a worker keeps more bytes for an origin that does not answer than its quota, and what ran meanwhile.
func (n *node) checkKept(r tasks.HeldRecord) {
	kept, largest := uint64(0), uint64(0)
	for k, o := range n.disk.book.held {
		if k.origin == r.Origin {
			kept += o.OutputBlob.GetSize()
			largest = max(largest, o.OutputBlob.GetSize())
		}
	}
	if kept > 1<<30+uint64(2*n.p.hasSlots)*largest { // two a slot may be under way
		n.w.fail("I8: %v keeps %d MiB of results for %v, which does not answer", n, kept>>20, n.w.byID[r.Origin])
	}
}

func (n *node) checkDone(r tasks.DoneRecord) {
	w, o := n.w, r.Done.Outcome
	j := w.jobs[r.Job]
	if j == nil || j.n != n {
		w.fail("I9: %v ends a task of a job that is not its own", n)
		return
	}
	a := o.AttemptOf()
	wrong := false
	switch o.Status {
	case protocol.Status_OK:
		wrong = j.invalid || j.fails(o.Index) || j.poison(o.Index)
		if j.big(o.Index) {
			id := j.blob(o.Index)
			wrong = wrong || o.OutputBlob == nil || !bytes.Equal(o.OutputBlob.Id, id[:])
			if !n.blobs.here[id] || n.blobs.pins[id] == 0 {
				w.fail("%v ends %v, and the bytes of its result are not on its disk, or not pinned", n, a)
				return
			}
		} else {
			wrong = wrong || !bytes.Equal(o.Output, j.result(o.Index))
		}
	case protocol.Status_FAILED, protocol.Status_WORKER_LOST:
		wrong = !j.fails(o.Index) && w.deathOf[a.Task()] < 4 && !w.excused(j, r)
	case protocol.Status_INVALID:
		wrong = !j.invalid
	case protocol.Status_CANCELLED:
		wrong = !j.cancelAsked
	default:
		wrong = true
	}
	if o.Status == protocol.Status_FAILED && n.p != nil {
		for c, g := range w.history(a.Task()).to {
			if c != a && g.n != nil && g.n.id != r.Done.Worker && g.session > 0 && g.session == n.p.current[g.n.id] && n.p.healthy(g) && g.n.p.runs(n.id, c) {
				w.fail("%v ends %s/%d with a failure of %v, and %v still runs another attempt of it", n, r.Job.Short(), o.Index, a, g.n)
				return
			}
		}
	}
	if wrong {
		w.fail("%v ends %s/%d with %v (%s), which is not how it ended", n, r.Job.Short(), o.Index, o.Status, o.Error)
		return
	}
	if o.N > 0 && n.rollbacks == 0 {
		if g, ok := w.history(a.Task()).to[a]; (ok || r.Done.Worker != n.id) && (!ok || g.n.id != r.Done.Worker) {
			w.fail("I9: %v ends %v by a result of %v, to which it was not granted", n, a, w.byID[r.Done.Worker])
		}
	}
}

// checkUnpin fails if a record on the disk still needs the bytes.
func (p *process) checkUnpin(id protocol.BlobID) {
	n := p.n
	needed := 0
	for _, b := range n.disk.book.jobs {
		for _, have := range b.blobs {
			if have == id {
				needed++
			}
		}
	}
	for _, o := range n.disk.book.held {
		for _, have := range blobsOf(o) {
			if have == id {
				needed++
			}
		}
	}
	// Of each origin whose tasks read it here, one pin.
	readers := map[protocol.NodeID]bool{}
	for _, s := range p.slot {
		for i := range s.items {
			if slices.Contains(readBy(&s.items[i].Input), id) {
				readers[s.origin] = true
			}
		}
	}
	needed += len(readers)
	if n.blobs.pins[id] < needed {
		n.w.fail("%v unpins %x, which %d records need", n, id[:4], needed)
	}
}

// checkNotice fails if watchers are told what is not written, or, Durable, not synced.
func (p *process) checkNotice(x tasks.Notice) {
	n, w := p.n, p.n.w
	b := n.disk.book.job(x.Job) // it may be forgotten in the same Ready
	if b == nil {
		w.fail("I5: %v tells %s of a job that is not on its disk", n, describeNotice(x))
		return
	}
	last := len(n.disk.batches)
	if x.Durable {
		last = n.disk.synced
	}
	ok := false
	switch x.Kind {
	case tasks.Accepted:
		if j := w.jobs[x.Job]; j != nil && j.detached && !x.Durable && !b.cancelled {
			w.fail("I5: %v accepts the detached %s before it is synced", n, x.Job.Short())
			return
		}
		ok = x.Count == 0
		for _, t := range b.tasksAt {
			ok = ok || t.tasks >= x.Count && t.batch < last
		}
	case tasks.TaskDone:
		d, done := b.done[x.Done.Outcome.Index]
		ok = done && d.batch < last && d.status == x.Done.Outcome.Status
	case tasks.JobEnded:
		ok = b.ended()
	}
	if !ok {
		w.fail("I5: %v tells %s, which is not on its disk", n, describeNotice(x))
	}
}

// settle ends all faults: everybody is up, connected and willing.
func (w *world) settle() {
	w.trace("faults end")
	w.deathsPer, w.stragglePer = 0, 0
	for _, l := range w.links {
		l.walls++
		l.heal()
		l.spikeTo = 0
	}
	for _, n := range w.nodes {
		n.held, n.unable, n.cpu, n.crashIn, n.failWrite, n.failSync, n.readGap = false, false, 100, 0, false, false, 0
		if n.mute { // results are sent again over new streams only
			n.mute = false
			for _, l := range n.links {
				if l.conn != nil {
					l.conn.cut(cutReset)
				}
			}
		}
		if n.sleeper != 0 {
			n.sleeper = 0
			n.crash(false, 50*ms)
		}
		n.syncTakes = func() int64 { return w.between(150*us, 900*us) }
		n.slots = max(n.slots, 1)
		n.idle = ""
		if n.p == nil {
			n.start()
			continue
		}
		if n.stands() {
			n.goOn()
		}
		if p := n.p; p != nil && !p.stopping { // what it did at waking may have ended it
			p.setSlots(n.slots)
			p.post(tasks.SetPaused{})
		}
	}
	end := w.now + w.bound
	slowest := int64(100)
	for _, n := range w.nodes {
		slowest = min(slowest, n.speed)
	}
	for _, j := range w.order {
		if j.parallel > 0 { // it may be that one slow node runs all of it
			for i := range j.tasks {
				end += j.work(i) * 100 / slowest / int64(j.parallel)
			}
		}
	}
	var poll func()
	poll = func() {
		what := w.unfinished()
		switch {
		case what == "":
			w.finished()
		case w.now >= end:
			w.fail("I10: %.0f s after the faults ended %s", float64(w.bound)/1e9, what)
		default:
			w.after(250*ms, poll)
		}
	}
	poll()
}

// unfinished says what is still to be done, "" if nothing is.
func (w *world) unfinished() string {
	for _, n := range w.nodes {
		if n.p == nil || n.stands() {
			return n.String() + " is not running"
		}
	}
	for _, j := range w.order {
		b := j.n.disk.book.job(j.id)
		switch {
		case b == nil && j.ended && !j.detached && j.n.life > 1:
			// An attached client has all it wanted; a crash before the sync took the rest.
		case b == nil:
			return "job " + j.id.Short() + " is not accepted by " + j.n.String()
		case !b.ended():
			return "job " + j.id.Short() + " of " + j.n.String() + " has not ended"
		case w.retention != tasks.Retention{} && j.n.disk.book.jobs[j.id] != nil:
			return "job " + j.id.Short() + " of " + j.n.String() + " has ended, and is not forgotten"
		}
	}
	for _, n := range w.nodes {
		for k := range n.disk.book.held {
			return n.String() + " holds an unanswered outcome of " + w.byID[k.origin].String()
		}
		if len(n.p.inbox) > 0 || len(n.p.later) > 0 || n.p.carrying > 0 {
			return n.String() + " is busy"
		}
		if len(n.p.slot) > 0 {
			return n.String() + " runs tasks of ended jobs"
		}
		for _, l := range n.links {
			m := l.n[1-l.side(n)]
			if h := n.p.s.Hello(m.id); len(h.Held)+len(h.Unanswered) > 0 {
				return fmt.Sprintf("%v holds %s %s of %v", n, attempts(h.Held), attempts(h.Unanswered), m)
			}
		}
	}
	return ""
}

// finished looks at the world after its end.
func (w *world) finished() {
	w.over = true
	needed := 0
	for _, j := range w.order {
		n := j.n
		b := n.disk.book.job(j.id)
		if b == nil {
			continue
		}
		needed += int(b.tasks)
		for i, s := range j.durable {
			if d, ok := b.done[i]; n.rollbacks == 0 && (!ok || d.status != s) {
				w.fail("I5: %v told durably that %s/%d was %v, and its disk does not know", n, j.id.Short(), i, s)
			}
		}
		if !b.cancelled && b.tasks != j.tasks {
			w.fail("I7: %s has %d tasks, and %d were submitted", j.id.Short(), b.tasks, j.tasks)
		}
		for _, id := range b.blobs {
			if forgotten := n.disk.book.jobs[j.id] == nil; forgotten && n.blobs.pins[id] > 0 {
				w.fail("%v keeps the bytes of a result of %s, which is forgotten", n, j.id.Short())
			} else if !forgotten && !n.blobs.here[id] {
				w.fail("%v has lost the bytes of a result of %s", n, j.id.Short())
			}
		}
		if n.life == 1 && !j.endTold {
			w.fail("%v never told that %s ended", n, j.id.Short())
		}
		if n.life == 1 && !b.cancelled && len(j.seen) != int(b.tasks) {
			w.fail("%v told %d results of %s, which has %d tasks", n, len(j.seen), j.id.Short(), b.tasks)
		}
	}
	for _, n := range w.nodes {
		if err := n.p.s.Check(); err != nil {
			w.fail("%v: %v", n, err)
		}
	}
	for _, j := range w.order {
		for i := uint32(0); j.reads && i < j.tasks; i++ {
			in := j.input(i)
			for _, n := range w.nodes {
				for _, id := range readBy(&in) {
					if n != j.n && n.blobs.pins[id] > 0 && !n.p.obtains[obtaining{j.n.id, id}] {
						w.fail("%v keeps what tasks of %s read, which has ended", n, j.id.Short())
					}
				}
			}
		}
	}
	spares := w.spares // second copies on idle capacity cost nobody anything; they have a budget of their own
	for _, n := range w.nodes {
		for _, st := range n.p.s.Jobs() {
			spares += int(st.Spares)
		}
	}
	if w.maxRegrants > 0 && float64(w.executed-spares) > w.maxRegrants*float64(needed)+float64(w.extra) {
		w.fail("budget: %d attempts ran for %d tasks, besides %d spare copies", w.executed-spares, needed, spares)
	}
	if w.maxRegrants > 0 && spares > needed/4+8*len(w.nodes) {
		w.fail("budget: %d spare copies for %d tasks", spares, needed)
	}
	if w.maxPerTask > 0 && float64(w.messages) > w.maxPerTask*float64(needed) {
		w.fail("budget: %d messages for %d tasks", w.messages, needed)
	}
	if r := w.report(); w.minEfficiency > 0 && r.Efficiency() < w.minEfficiency {
		w.fail("budget: efficiency %.3f, at least %.3f", r.Efficiency(), w.minEfficiency)
	}
}
