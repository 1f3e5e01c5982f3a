package sim

import (
	"encoding/binary"

	"meshnode/protocol"
	"meshnode/tasks"
)

// slot runs items of one job, one after the other.
type slot struct {
	origin  protocol.NodeID
	job     protocol.JobID
	items   []tasks.Item
	running bool // items[0] runs
	sent    bool // the frame with the items has been paid for
	gen     int  // of the running item: what ends it is for this one only
	began   int64
	queued  int64
	out     []*protocol.Outcome // ended, not yet told
	back    []protocol.Attempt
}

func (p *process) startSlot(x tasks.Start) {
	n, w := p.n, p.n.w
	w.trace("%v starts slot %d: %v", n, x.Slot, itemNames(x.Items))
	w.mixInt(int64(x.Slot))
	p.checkStart(x)
	if s := p.slot[x.Slot]; s != nil {
		if s.origin != x.Origin || s.job != x.Job {
			w.fail("%v starts slot %d, which is busy with another job", n, x.Slot)
			return
		}
		s.items = append(s.items, x.Items...)
		return // what it does now, or the end of its process, leads to them
	}
	s := &slot{origin: x.Origin, job: x.Job, items: append([]tasks.Item(nil), x.Items...), queued: w.now}
	p.slot[x.Slot] = s
	p.next(x.Slot, s)
}

// next runs the next item of a slot, or says that it is idle.
func (p *process) next(i int, s *slot) {
	n, w := p.n, p.n.w
	if len(s.items) == 0 {
		delete(p.slot, i)
		p.tell(i, s, true)
		return
	}
	a := s.items[0].Attempt
	j := w.jobs[a.Job]
	if j == nil {
		w.fail("%v runs %v, of no job", n, a)
		return
	}
	p.checkRun(s.origin, a)
	p.checkReads(&s.items[0])
	j.begins(a)
	s.running, s.began = true, w.now
	if n.sleeper == sleepInSlot {
		return // for ever
	}
	s.gen++
	gen := s.gen
	d := j.work(a.Index) * 100 / n.speed
	if w.chance(w.stragglePer) {
		d = min(12*d, d+10*sec)
	}
	if j.slowDraw(a.Index, j.runs[a.Index].starts) {
		d *= slowBy
	}
	dies := j.poison(a.Index)
	if !dies && w.chance(w.deathsPer) && w.now < w.settleAt {
		dies = true
	}
	if dies {
		d = d * int64(w.rng.IntN(100)) / 100
	}
	kills := j.kills(a.Index, n)
	if kills {
		d /= 2
	}
	if n.hole {
		d = 2 * ms
	}
	frame := w.handoff
	if s.sent {
		frame = w.handoff / 20 // of a batch
	}
	s.sent = true
	p.after(frame+d, func() {
		if s.gen != gen || !s.running {
			return
		}
		if kills {
			if w.killed[a.Task()]++; w.maxKills > 0 && w.killed[a.Task()] > w.maxKills {
				w.fail("budget: %v took down %d nodes", a.Task(), w.killed[a.Task()])
			}
			w.trace("%v is taken down by %v", n, a)
			n.crash(w.chance(500), w.between(100*ms, 1*sec))
			return
		}
		p.checkReads(&s.items[0])
		s.running = false
		j.endsRun(a, !dies)
		s.items = s.items[1:]
		o := &protocol.Outcome{Job: a.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N,
			QueuedUs: uint64((s.began - s.queued) / us), RunUs: uint64(d / us)}
		if dies {
			w.trace("%v: the worker process of %v dies", n, a)
			w.deathOf[a.Task()]++
			o.Status = protocol.Status_WORKER_LOST
			o.Error = "worker process killed by signal 9"
			s.out = append(s.out, o)
			for _, it := range s.items {
				s.back = append(s.back, it.Attempt)
			}
			s.items = nil
			p.tell(i, s, false)
			p.after(w.between(5*ms, 100*ms), func() { p.next(i, s) })
			return
		}
		if j.finish(a.Index, o); n.hole || j.flaky(a) {
			o.Status, o.ExitCode, o.Error, o.Output, o.OutputBlob = protocol.Status_FAILED, 1, "disk full", nil, nil
			w.brokeOf[a.Task()]++
		}
		n.blobs.put(blobsOf(o)...)
		s.out = append(s.out, o)
		if len(s.items) > 0 && (!w.partial || w.chance(500)) {
			p.tell(i, s, false)
		}
		p.next(i, s)
	})
}

// tell posts what the slot has to say.
func (p *process) tell(i int, s *slot, idle bool) {
	ev := tasks.Finished{Slot: i, Outcomes: s.out, Returned: s.back, Idle: idle}
	s.out, s.back = nil, nil
	p.post(ev)
}

func (p *process) stop(x tasks.Stop) {
	n, w := p.n, p.n.w
	w.trace("%v stops in slot %d: %v", n, x.Slot, x.Attempts)
	w.mixInt(int64(x.Slot))
	s := p.slot[x.Slot]
	if s == nil {
		return
	}
	killed := false
	for _, a := range x.Attempts {
		for k, it := range s.items {
			if it.Attempt != a {
				continue
			}
			s.items = append(append([]tasks.Item(nil), s.items[:k]...), s.items[k+1:]...)
			s.back = append(s.back, a)
			if k == 0 && s.running {
				s.running = false
				w.jobs[a.Job].endsRun(a, false)
				s.gen++
				killed = true
			}
			break
		}
	}
	if killed {
		p.after(w.between(1*ms, 10*ms), func() {
			if s.running || p.slot[x.Slot] != s { // another Stop came between
				return
			}
			p.next(x.Slot, s)
		})
		return
	}
	if len(s.back) > 0 {
		p.tell(x.Slot, s, false)
	}
}

func (p *process) prepare(x tasks.Prepare) {
	n, w := p.n, p.n.w
	if x.Drop {
		id, _ := protocol.JobIDFrom(x.Info.GetJob())
		w.trace("%v drops the program of %s", n, id.Short())
		delete(p.prepared, programKey{x.Origin, id})
		return
	}
	id, err := protocol.JobIDFrom(x.Info.GetJob())
	j := w.jobs[id]
	if err != nil || j == nil {
		w.fail("%v prepares a job without a name, or of no origin", n)
		return
	}
	w.trace("%v prepares %s of %s", n, id.Short(), w.byID[x.Origin])
	w.mix(id[:])
	if n.sleeper == sleepInPrepare {
		return // for ever
	}
	moving, from := int64(0), w.byID[x.Origin]
	if from != nil && from != n {
		moving = n.link(from).perMiB * int64(x.Info.Program.GetCode().GetSize()>>10) >> 10
	}
	p.after(w.between(w.prepare[0], w.prepare[1])+moving, func() {
		if size := x.Info.Program.GetCode().GetSize(); moving > 0 && from.p != nil {
			p.post(tasks.Transferred{Peer: x.Origin, Bytes: size, Took: moving})
			from.p.post(tasks.Transferred{Peer: n.id, Bytes: size, Took: moving})
		}
		ev := tasks.Prepared{Origin: x.Origin, Job: id}
		switch {
		case j.invalid:
			ev.Invalid = "not a wasm module"
		case x.Origin != n.id && (n.unable || j.notAt[n.index]):
			ev.Unable = "no room for the program"
		default:
			p.prepared[programKey{x.Origin, id}] = true
		}
		p.post(ev)
	})
}

// sleep is how a node takes tasks and never runs them.
type sleep byte

const (
	sleepInSlot    sleep = iota + 1 // they start and do not end
	sleepInPrepare                  // their program is never ready
)

// fetch moves blobs from one node's store to another's.
func (p *process) fetch(x tasks.Fetch) {
	n, w := p.n, p.n.w
	from := w.byID[x.Peer]
	w.trace("%v fetches %d blobs of %v from %v", n, len(x.Blobs), x.Attempt, from)
	w.mixInt(int64(len(x.Blobs)))
	if from == nil {
		w.fail("%v fetches from an unknown node", n)
		return
	}
	p.after(w.between(1*ms, 60*ms), func() {
		ev := tasks.Fetched{Attempt: x.Attempt, Peer: x.Peer}
		for _, b := range x.Blobs {
			id := protocol.BlobID(b.Id)
			if from != n && (from.p == nil || from.stands() || n.link(from).blocked != [2]bool{}) {
				ev.Err = "no connection"
			} else if !from.blobs.here[id] {
				ev.Err = "not there"
			}
		}
		if ev.Err == "" {
			for _, b := range x.Blobs {
				id := protocol.BlobID(b.Id)
				n.blobs.put(id)
				ev.Blobs = append(ev.Blobs, id)
			}
		}
		p.post(ev)
	})
}

// obtain brings what tasks read here, as fetch brings results.
func (p *process) obtain(x tasks.Obtain) {
	n, w := p.n, p.n.w
	from, id := w.byID[x.Origin], protocol.BlobID(x.Blob.Id)
	w.trace("%v obtains %x from %v", n, id[:4], from)
	w.mix(id[:])
	if from == nil {
		w.fail("%v obtains a blob from an unknown node", n)
		return
	}
	key := obtaining{x.Origin, id}
	if p.obtains[key] {
		w.fail("%v obtains %x twice at once", n, id[:4])
	}
	if p.obtains == nil {
		p.obtains = map[obtaining]bool{}
	}
	p.obtains[key] = true
	p.after(w.between(1*ms, 60*ms), func() {
		delete(p.obtains, key)
		ev := tasks.Obtained{Origin: x.Origin, Blob: id}
		switch {
		case n.blobs.here[id]:
		case from != n && (from.p == nil || from.stands() || n.link(from).blocked != [2]bool{}):
			ev.Err = "no connection"
		case !from.blobs.here[id]:
			ev.Err = "not there"
		case w.chance(20):
			ev.Err = "no room for the blob"
		}
		if ev.Err == "" {
			n.blobs.put(id)
		}
		p.post(ev)
	})
}

type obtaining struct {
	origin protocol.NodeID
	blob   protocol.BlobID
}

// checkReads fails if what a task reads is not here, or may go while it runs.
func (p *process) checkReads(it *tasks.Item) {
	for _, id := range readBy(&it.Input) {
		if b := p.n.blobs; !b.here[id] || b.pins[id] == 0 {
			p.n.w.fail("%v runs %v, and what it reads, %x, is not here, or not pinned", p.n, it.Attempt, id[:4])
		}
	}
}

func (p *process) unpin(id protocol.BlobID) {
	p.n.w.trace("%v unpins %x", p.n, id[:4])
	p.n.w.mix(id[:])
	p.n.blobs.unpin(id)
	p.checkUnpin(id)
	if p.n.w.chance(300) {
		p.n.blobs.evict()
	}
}

func itemNames(items []tasks.Item) []protocol.Attempt {
	out := make([]protocol.Attempt, len(items))
	for i, it := range items {
		out[i] = it.Attempt
	}
	return out
}

// finish fills in how the task ends, if its worker process lives: the same wherever it runs.
func (j *job) finish(index uint32, o *protocol.Outcome) {
	switch {
	case j.fails(index):
		o.Status, o.ExitCode, o.Error = protocol.Status_FAILED, 3, "exit code 3"
	case j.big(index):
		id := j.blob(index)
		o.Status = protocol.Status_OK
		o.OutputBlob = &protocol.Blob{Id: id[:], Size: max(j.blobSize, 100<<10)}
	default:
		o.Status = protocol.Status_OK
		o.Output = j.result(index)
	}
}

func (j *job) result(index uint32) []byte {
	return binary.LittleEndian.AppendUint64(nil, hash64(j.seed, uint64(index), 1))
}

func (j *job) blob(index uint32) protocol.BlobID {
	var id protocol.BlobID
	for k := range 4 {
		binary.LittleEndian.PutUint64(id[8*k:], hash64(j.seed, uint64(index), 2, uint64(k)))
	}
	return id
}
